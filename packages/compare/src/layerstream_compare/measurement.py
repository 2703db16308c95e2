"""A measurement: the result of one case, or why there is none. Plain data, one line of JSON.

No torch, no layerstream. Each number's docstring says what it includes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .case import Case

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """Memory of the worker process in one phase, in bytes. Peak counters restart in each phase.

    Attributes:
        phase: `import`, `load`, `warm-up` (if there is one), `first-token` or `decode`.
        anonymous_bytes: private memory at the end of the phase (RssAnon).
        file_bytes: mapped files at the end of the phase (RssFile), a mapped checkpoint included.
        shared_bytes: shared memory at the end of the phase (RssShmem), where a driver keeps the pinned memory
            that it allocates. Older records count it in `file_bytes`.
        peak_bytes: high-water mark of the resident set during the phase, mapped files included.
        device_allocated_bytes: peak of the accelerator's allocator during the phase; 0 on a CPU.
        device_reserved_bytes: peak that the allocator reserved on the device; 0 on a CPU.
        device_process_bytes: NVML's figure for the process at the end of the phase, CUDA context included; 0
            if NVML did not give one.
    """

    phase: str
    anonymous_bytes: int
    file_bytes: int
    peak_bytes: int
    device_allocated_bytes: int = 0
    device_reserved_bytes: int = 0
    device_process_bytes: int = 0
    shared_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """The whole resident set at the end of the phase."""
        return self.anonymous_bytes + self.file_bytes + self.shared_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the whole case, in bytes.

    Attributes:
        baseline_bytes: resident set after importing everything and before loading anything.
        held_bytes: weights and quantization state that the loaded model keeps: its storages, each counted
            once.
        peak_over_baseline_bytes: highest resident set of load, warm-up, first token and decode, minus the
            baseline.
        mapped_held_bytes: part of `held_bytes` in mapped files (weights used in place in a mapped
            checkpoint).
        device_held_bytes: part of `held_bytes` on an accelerator; 0 on a CPU.
        load_spike_bytes: peak during loading minus the resident set after it.
        phases: memory of each phase.
    """

    baseline_bytes: int
    held_bytes: int
    peak_over_baseline_bytes: int
    load_spike_bytes: int
    phases: tuple[PhaseMemory, ...]
    mapped_held_bytes: int = 0
    device_held_bytes: int = 0

    @property
    def has_device(self) -> bool:
        """Whether the case ran on an accelerator, which has a memory of its own."""
        return self.device_held_bytes > 0 or any(phase.device_allocated_bytes for phase in self.phases)

    @property
    def host_held_bytes(self) -> int:
        """The part of `held_bytes` in host memory."""
        return self.held_bytes - self.device_held_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of one case in seconds; the device is synchronized before each reading.

    Attributes:
        load_s: from the start of loading to a usable model.
        first_forward_s: the very first forward (the warm-up's), repacking of weights included.
        first_token_s: from the call to generate to the first token, after warm-up.
        inter_token_median_s: median time between tokens after the first.
        inter_token_p95_s: 95th percentile of the time between tokens.
        tokens_per_s: tokens after the first divided by the seconds between them.
        cpu_s: CPU seconds of the process during the measured generation.
        bytes_read: bytes read from disk, not from the page cache, during the measured generation.
        load_average: one-minute load average of the machine before the case.
        background_cores: average number of cores that other programs kept busy during the measured
            generation.
        is_noisy: other programs kept more than a quarter of a core busy, or the times between tokens spread
            widely (p95 over 2 x median).
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
    background_cores: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well a variant agrees with the exact reference on one text, teacher-forced, position by position.

    Attributes:
        text: `answer` (the reference's own) or `prose` (the text that ships with the package).
        positions: number of positions compared.
        kl_mean: mean of KL(reference || variant), nats.
        kl_p99: 99th percentile of the same.
        kl_max: maximum of the same.
        reverse_kl_mean: mean of KL(variant || reference), nats.
        reverse_kl_p99: 99th percentile of the same.
        reverse_kl_max: maximum of the same.
        top1: share of positions with the same most likely token.
        top1_standard_error: standard error of that share.
        max_logit_difference: largest absolute difference of any logit.
        perplexity_ratio: the variant's perplexity divided by the reference's.
        is_bit_exact: every logit at every position is equal, bit for bit.
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
        reference_token: text of the reference's token.
        variant_token: text of the variant's token.
        margin: the reference's p1 - p2 at that token: 0.004 is a coin flip, 0.58 is damage.
    """

    position: int
    reference_token: str
    variant_token: str
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One case and its outcome.

    Attributes:
        case: the case that ran.
        status: `ok`, `failed` or `unavailable`.
        reason: one line that says why the status is not `ok`.
        hits_every_case: a failure that no variant avoids: without a tokenizer, for instance, no case can run.
        stderr_tail: last lines of a failed worker's standard error.
        isolation: `process` (a fresh one) or `in-process` (weaker: memory of earlier cases may be included).
        prompt_tokens: tokens in the prompt as run.
        token_ids: the new tokens.
        token_texts: text of each new token; together they are `text`.
        text: the answer.
        memory: memory in bytes.
        timing: times in seconds.
        agreements: agreement with the reference on each text.
        divergence: first token that differs from the reference's answer; None when the answers are equal.
        facts: what actually ran: kernels, unquantized modules, effective bits per weight, the streamed
            variant's plan, ...
        environment: versions, CPU flags, GPU, threads, commit.
        schema_version: version of this record.
    """

    case: Case
    status: str
    reason: str = ""
    hits_every_case: bool = False
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
            ValueError: the text is not a record of this schema version.
        """
        record = json.loads(text)
        if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"this is not a record of schema version {SCHEMA_VERSION}")
        memory, timing, divergence = record["memory"], record["timing"], record["divergence"]
        if memory is not None:
            memory["phases"] = tuple(PhaseMemory(**phase) for phase in memory["phases"])
        record |= {
            "case": _case_of(record),
            "memory": None if memory is None else Memory(**memory),
            "timing": None if timing is None else Timing(**timing),
            "agreements": tuple(Agreement(**entry) for entry in record["agreements"]),
            "divergence": None if divergence is None else Divergence(**divergence),
            "token_ids": tuple(record["token_ids"]),
            "token_texts": tuple(record["token_texts"]),
        }
        return cls(**record)


def _case_of(record: dict[str, Any]) -> Case:
    """Return the case of a record.

    Older ones name no host budget: on an accelerator the streamed variant took what was free, on a CPU it has
    none. Still older ones do not say whether agreement was measured on prose: it always was.
    """
    on_accelerator = record["facts"].get("device", "cpu") != "cpu"
    unnamed = {"host_budget": "auto" if on_accelerator else "min", "prose": True}
    return Case(**unnamed | record["case"])
