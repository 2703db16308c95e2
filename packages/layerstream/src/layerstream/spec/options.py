"""Wishes: what a user asks for. Frozen, checked on construction, never changed.

Room: words.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PlanError
from .sizes import parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """How much memory a streamed model may take.

    Attributes:
        device: bytes (or a size such as `"6 GiB"`) on the compute device; `"auto"` what is free there, `"min"` the least
            that works.
        host: the same for host memory. Where the device is the CPU the two are one memory, and `device` is what counts.
    """

    device: int | str = "auto"
    host: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse anything that is neither a size nor `auto` or `min`."""
        for requested in (self.device, self.host):
            if requested not in ("auto", "min"):
                parse_size(requested)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What will be run, as far as memory and time depend on it.

    Attributes:
        batch_size: sequences in one forward (beams included).
        prompt_tokens: the longest prompt, in tokens.
        new_tokens: tokens generated after it.
        prefill_chunk_tokens: let the feed-forward parts work through a longer prompt this many tokens at a time, within each
            block's one visit. Needs less memory; results in bf16 and fp16 may then round differently. None does not chunk.
    """

    batch_size: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 128
    prefill_chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts that make no sense."""
        if self.batch_size < 1 or self.prompt_tokens < 1 or self.new_tokens < 0:
            raise PlanError(
                f"a workload needs batch_size >= 1, prompt_tokens >= 1 and new_tokens >= 0; got {self.batch_size}, "
                f"{self.prompt_tokens} and {self.new_tokens}"
            )
        if self.prefill_chunk_tokens is not None and self.prefill_chunk_tokens < 1:
            raise PlanError(
                f"prefill_chunk_tokens must be at least 1, or None; got {self.prefill_chunk_tokens}"
            )

    @property
    def context_tokens(self) -> int:
        """The longest context: prompt and answer."""
        return self.prompt_tokens + self.new_tokens
