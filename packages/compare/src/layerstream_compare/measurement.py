"""A measurement: everything known about one case after it ran, or why it did not. Plain data, one line of JSON.

Words of this package: no torch, no layerstream. Every number's docstring says what it includes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .case import Case

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """Memory of the worker's process in one phase, in bytes. The peak counter is reset at the start of each phase.

    Attributes:
        phase: `import`, `load`, `warm-up` (where there is one), `first-token` or `decode`.
        anonymous_bytes: private memory at the phase's end (RssAnon).
        file_bytes: mapped files at its end (RssFile): a mapped checkpoint shows here.
        peak_bytes: high-water mark of the resident set during the phase, mapped files included.
        device_allocated_bytes: peak of the accelerator's allocator in the phase; 0 on a CPU.
        device_reserved_bytes: what that allocator held of the device; 0 on a CPU.
        device_process_bytes: what NVML counts for the process at the phase's end, CUDA's context included; 0 where it is not asked.
    """

    phase: str
    anonymous_bytes: int
    file_bytes: int
    peak_bytes: int
    device_allocated_bytes: int = 0
    device_reserved_bytes: int = 0
    device_process_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the whole case, in bytes.

    Attributes:
        baseline_bytes: resident set after importing everything and before loading anything.
        held_bytes: weights and quantization state that the loaded model keeps: its own storages, each counted once.
        peak_over_baseline_bytes: highest resident set of load, warm-up, first token and decode, over the baseline.
        mapped_held_bytes: what of that lies in mapped files (weights used where the checkpoint is mapped).
        device_held_bytes: what of that is on an accelerator; 0 on a CPU.
        load_spike_bytes: peak while loading over what is resident after it.
        phases: each phase apart.
    """

    baseline_bytes: int
    held_bytes: int
    peak_over_baseline_bytes: int
    load_spike_bytes: int
    phases: tuple[PhaseMemory, ...]
    mapped_held_bytes: int = 0
    device_held_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one case, device synchronized.

    Attributes:
        load_s: from the start of loading to a usable model.
        first_forward_s: the very first forward, repacking of weights included (the warm-up's).
        first_token_s: from the call of generate to the first token, after warm-up.
        inter_token_median_s: median time between tokens after the first.
        inter_token_p95_s: 95th percentile of it.
        tokens_per_s: tokens after the first by the seconds between them.
        cpu_s: CPU seconds of the process in the measured generation.
        bytes_read: bytes truly read from disk in the measured generation.
        load_average: the machine's load average of one minute before the case.
        others_cores: how many cores other programs kept busy on average during the measured generation.
        is_noisy: others kept more than a quarter of a core busy, or the inter-token times spread widely (p95 over 2 x median).
    """

    load_s: float
    first_forward_s: float
    first_token_s: float
    inter_token_median_s: float
    inter_token_p95_s: float
    tokens_per_s: float
    cpu_s: float
    bytes_read: int
    load_average: float
    is_noisy: bool
    others_cores: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well a variant agrees with the exact reference on one text, teacher-forced, position by position.

    Attributes:
        text: `answer` (the reference's own) or `prose` (the text that ships with the package).
        positions: how many.
        kl_mean: mean of KL(reference || variant), nats.
        kl_p99: its 99th percentile.
        kl_max: its maximum.
        reverse_kl_mean: mean of KL(variant || reference), nats.
        reverse_kl_p99: its 99th percentile.
        reverse_kl_max: its maximum.
        top1: share of positions with the same most likely token.
        top1_standard_error: of that share.
        max_logit_difference: the largest absolute difference of a logit.
        perplexity_ratio: variant's perplexity by the reference's.
        is_bit_exact: every logit of every position is equal, bit for bit.
    """

    text: str
    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    reverse_kl_mean: float
    reverse_kl_p99: float
    reverse_kl_max: float
    top1: float
    top1_standard_error: float
    max_logit_difference: float
    perplexity_ratio: float
    is_bit_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where a variant's answer differs from the reference's.

    Attributes:
        position: index among the new tokens.
        reference_token: the reference's token, as text.
        variant_token: the variant's token, as text.
        margin: the reference's own p1 - p2 there: 0.004 is a coin flip, 0.58 is damage.
    """

    position: int
    reference_token: str
    variant_token: str
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One case and what came of it.

    Attributes:
        case: what was asked.
        status: `ok`, `failed` or `unavailable`.
        reason: why not, when not ok: one line.
        stderr_tail: the last lines of the worker's standard error when it failed.
        isolation: `process` (a fresh one, the honest way) or `in-process` (weaker: memory of other cases may show).
        prompt_tokens: tokens in the prompt as run.
        token_ids: the new tokens.
        token_texts: their texts, one each, so that lanes can be marked token by token.
        text: the answer.
        memory: bytes.
        timing: seconds.
        agreements: with the reference, one for each text.
        divergence: the first different token; None when the answers are equal.
        facts: what really ran: kernels, what stayed unquantized, effective bits per weight, plan of the streamed variant, ...
        environment: versions, CPU flags, GPU, threads, commit.
        schema_version: of this record.
    """

    case: Case
    status: str
    reason: str = ""
    stderr_tail: str = ""
    isolation: str = "process"
    prompt_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    token_texts: tuple[str, ...] = ()
    text: str = ""
    memory: Memory | None = None
    timing: Timing | None = None
    agreements: tuple[Agreement, ...] = ()
    divergence: Divergence | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the measurement as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Return the measurement that `to_json` wrote.

        Raises:
            ValueError: the record is of another schema version, or no record at all.
        """
        record = json.loads(text)
        if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"this record is not of schema version {SCHEMA_VERSION}")
        memory, timing, divergence = record["memory"], record["timing"], record["divergence"]
        if memory is not None:
            memory["phases"] = tuple(PhaseMemory(**phase) for phase in memory["phases"])
        record |= {
            "case": Case(**record["case"]),
            "memory": None if memory is None else Memory(**memory),
            "timing": None if timing is None else Timing(**timing),
            "agreements": tuple(Agreement(**entry) for entry in record["agreements"]),
            "divergence": None if divergence is None else Divergence(**divergence),
            "token_ids": tuple(record["token_ids"]),
            "token_texts": tuple(record["token_texts"]),
        }
        return cls(**record)
