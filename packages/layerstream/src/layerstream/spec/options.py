"""Options: what a user asks for. Frozen values that check themselves on construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from .sizes import parse_size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_ADAPTER = "default"
"""The name of a single adapter, as in peft."""

LOOKUP = "lookup"
"""The draft that proposes n-grams of the text, without a model."""

AUTO_DRAFT = "auto"
"""Whichever draft the plan says is fastest, or none."""


class OwnCopy(Enum):
    """A draft that is a copy of the target with fewer bits and stays in memory.

    `INT8` has 8-bit weights with a scale per row, `NF4` 4-bit ones with a scale per 64 weights.
    """

    INT8 = "int8"
    NF4 = "nf4"


_UNLIMITED_BYTES = 1 << 60

OWN_DRAFTS = (*(copy.value for copy in OwnCopy), LOOKUP, AUTO_DRAFT)
"""The drafts that need no other model."""

NO_ADAPTER = "base"
"""What names the model without its adapters wherever an adapter is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """How much memory a streamed model may take.

    Attributes:
        device: memory of the compute device: bytes, a size such as `"6 GiB"`, `"auto"` (what is free there)
            or `"min"` (the least that works).
        host: the same for host memory. On a CPU device the two are one memory, and only `device` counts.
    """

    device: int | str = "auto"
    host: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse anything that is neither a size nor `auto` or `min`."""
        for size in (self.device, self.host):
            if size not in ("auto", "min"):
                parse_size(size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The size of a run, which determines its memory and time.

    Attributes:
        batch_size: sequences in one forward (beams included).
        prompt_tokens: the longest prompt, in tokens.
        new_tokens: tokens generated after it.
        prefill_chunk_tokens: run the feed-forward parts on at most this many tokens of a prompt at a time,
            within the single visit of each block. Saves memory; results in bf16 and fp16 may round
            differently. None turns chunking off.
    """

    batch_size: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 128
    prefill_chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts that are out of range."""
        if self.batch_size < 1 or self.prompt_tokens < 1 or self.new_tokens < 0:
            raise PlanError(
                "a workload needs batch_size >= 1, prompt_tokens >= 1 and new_tokens >= 0; "
                f"got {self.batch_size}, {self.prompt_tokens} and {self.new_tokens}"
            )
        if self.prefill_chunk_tokens is not None and self.prefill_chunk_tokens < 1:
            raise PlanError(
                f"prefill_chunk_tokens must be at least 1, or None; got {self.prefill_chunk_tokens}"
            )

    @property
    def context_tokens(self) -> int:
        """The longest context: prompt and answer."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        budget: memory per device: `"auto"` (what is free), `"min"` (the least that works), a size such as `"6
            GiB"` for the device, or a `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        devices: several devices that share every sweep's reads, instead of `device`.
        dtype: the run dtype, by torch's name; `"auto"` keeps the checkpoint's.
        workload: lengths and batch size to reserve memory for, on each device; None is `Workload()`.
        attn_implementation: transformers' name of the attention implementation, or the Hub id of a kernel.
        revision: the revision of a Hub id.
        trust_remote_code: run code from the repository; off unless requested.
        token: the access token for the Hub; None is the one of `HF_TOKEN` or `hf auth login`, True insists on
            it, False sends none. Not shown by `repr`.
        cache_dir: the directory of the Hub's cache; None is huggingface_hub's own.
        local_files_only: download nothing.
        subfolder: the folder of the repository or directory that holds config, weights and tokenizer.
        variant: which files hold the weights: `"fp16"` is `model.fp16.safetensors`.
        config: a config that replaces the checkpoint's, or a mapping of settings that replace its settings.
        adapter: an adapter's directory or Hub id, or several by name; the first one is active.
        allow_sliced_head: on accelerators, let a head that is larger than a slot be computed in vocabulary
            slices: less memory, but the last bit may differ. The CPU does so anyway, exactly.
        draft: what proposes tokens, which one sweep then verifies together: `"int8"` or `"nf4"` (the same
            model with fewer bits, in memory), `"lookup"` (n-grams of the text), the directory or Hub id of a
            smaller model with the same tokenizer, or `"auto"` (int8, nf4 or lookup, whichever the plan says
            is fastest, or none). None drafts nothing.
        draft_tokens: draft this many tokens for each sweep; None measures how many are fastest.
        draft_width: how many tokens a draft model considers at each place: 1 makes chains, more makes trees,
            which branch where the draft is unsure. None considers three.
        draft_acceptance: for a plan, the chance to assume that a drafted token is accepted if those before it
            were. None assumes what was measured with a small model.
        exact_ties: with a draft, verify each token by a forward of its own, bit for bit as plain generation
            does, in one shared sweep. False verifies a chain by one forward: on a CPU that computes less, but
            where two tokens score almost the same, the other one may be chosen.
        prefix_cache: memory that a service takes for the keys and values of earlier conversations: bytes or a
            size such as `"1 GiB"`. It is host memory; on a CPU device, a part of the budget. 0 keeps none.
    """

    budget: int | str | MemoryBudget = "auto"
    device: str = "auto"
    devices: Sequence[str] | None = None
    dtype: str = "auto"
    workload: Workload | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    subfolder: str = ""
    variant: str | None = None
    config: Mapping[str, Any] | PreTrainedConfig | None = None
    adapter: str | Path | Mapping[str, str | Path] | None = None
    allow_sliced_head: bool = False
    draft: str | Path | None = None
    draft_tokens: int | None = None
    draft_width: int | None = None
    draft_acceptance: float | None = None
    exact_ties: bool = True
    prefix_cache: int | str = 0

    def __post_init__(self) -> None:
        """Refuse what is not a size or a name, and devices that contradict each other."""
        if not isinstance(self.budget, MemoryBudget):
            MemoryBudget(device=self.budget)
        self._check_names()
        self._check_devices()
        self._check_draft()
        self._check_prefix_cache()
        _check_adapters(self.adapters)

    def _check_names(self) -> None:
        folder = PurePosixPath(self.subfolder)
        if folder.is_absolute() or ".." in folder.parts or "\\" in self.subfolder:
            raise PlanError(
                f"subfolder={self.subfolder!r} must be a path inside the checkpoint, such as 'model' or 'a/b'"
            )
        if self.variant is not None and (not self.variant or "/" in self.variant):
            raise PlanError(
                f"variant={self.variant!r} must be a part of the weights' file names, such as 'fp16'"
            )

    def _check_devices(self) -> None:
        if self.devices is None:
            return
        if self.device != "auto":
            raise PlanError(
                f"device={self.device!r} and devices={self.devices!r} were both given: "
                "name one device, or several"
            )
        if isinstance(self.devices, str) or not self.devices:
            raise PlanError(
                f"devices takes a list of devices, such as ['cuda:0', 'cuda:1']; got {self.devices!r}"
            )

    def _check_draft(self) -> None:
        for name, number in (("draft_tokens", self.draft_tokens), ("draft_width", self.draft_width)):
            if number is not None and number < 1:
                raise PlanError(f"{name} must be at least 1; got {number}")
        if self.draft_acceptance is not None and not 0 <= self.draft_acceptance <= 1:
            raise PlanError(f"draft_acceptance is a chance from 0 to 1; got {self.draft_acceptance}")
        if not self.exact_ties and (self.draft_width or 1) > 1:
            raise PlanError(
                f"draft_width={self.draft_width} drafts a tree, which exact_ties=False cannot verify: leave "
                "one of them out"
            )
        if self.draft is None:
            return
        if not str(self.draft):
            raise PlanError("draft is empty: give 'int8', 'lookup', or a model's directory or Hub id")
        if self.devices is not None and len(self.devices) > 1:
            raise PlanError(
                f"draft={str(self.draft)!r} works on one device; got devices={list(self.devices)!r}: name "
                "one device, or leave out the draft"
            )

    def _check_prefix_cache(self) -> None:
        if self.prefix_bytes and self.devices is not None and len(self.devices) > 1:
            raise PlanError(
                f"prefix_cache={self.prefix_cache!r} works on one device; got devices="
                f"{list(self.devices)!r}: name one device, or leave out prefix_cache"
            )

    @property
    def prefix_bytes(self) -> int:
        """The bytes of `prefix_cache`."""
        return 0 if self.prefix_cache in (0, "0") else parse_size(self.prefix_cache)

    @property
    def memory_budget(self) -> MemoryBudget:
        """The budget as a `MemoryBudget`."""
        return self.budget if isinstance(self.budget, MemoryBudget) else MemoryBudget(device=self.budget)

    @property
    def draft_model(self) -> str | None:
        """The directory or Hub id of the smaller model that drafts; None if no other model does."""
        return None if self.draft is None or str(self.draft) in OWN_DRAFTS else str(self.draft)

    def for_draft_model(self) -> LoadOptions:
        """Return how the smaller model is loaded: all of it in memory, from where its target may come."""
        return LoadOptions(
            budget=_UNLIMITED_BYTES,
            device=self.device,
            devices=self.devices,
            workload=self.workload,
            trust_remote_code=self.trust_remote_code,
            token=self.token,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        """Each adapter's name and its directory or Hub id."""
        if self.adapter is None:
            return ()
        named = self.adapter if isinstance(self.adapter, Mapping) else {DEFAULT_ADAPTER: self.adapter}
        return tuple((name, str(path)) for name, path in named.items())

    @property
    def prefill_chunk_tokens(self) -> int | None:
        """The workload's chunk size for prefill; None when chunking is off."""
        return None if self.workload is None else self.workload.prefill_chunk_tokens


def _check_adapters(adapters: Sequence[tuple[str, str]]) -> None:
    for name, path in adapters:
        if not isinstance(name, str) or not name or "." in name or name == NO_ADAPTER:
            raise PlanError(
                f"an adapter cannot be called {name!r}: names are texts without a dot, and {NO_ADAPTER!r} "
                "means the model without an adapter"
            )
        if not path:
            raise PlanError(f"the adapter {name!r} has an empty path: give a directory or a Hub id")
