"""The progress of `load`. A frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How much of what stays in memory has been loaded; what is streamed is not part of it.

    Attributes:
        done_bytes: read so far.
        total_bytes: read in all. Larger than 0.
    """

    done_bytes: int
    total_bytes: int

    def explain(self) -> str:
        """Return the progress as text for people."""
        return f"{format_bytes(self.done_bytes)} of {format_bytes(self.total_bytes)}"
