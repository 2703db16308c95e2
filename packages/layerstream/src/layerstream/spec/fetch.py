"""How far a copy of a model's files is. A frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """How far the files of a model have arrived.

    Attributes:
        file: the file that is copied now.
        done_bytes: what has arrived, of earlier tries too.
        total_bytes: the sizes of all files that this step copies. A copy has two steps, small files and
            weights; both counts start again at the second.
    """

    file: str
    done_bytes: int
    total_bytes: int

    def explain(self) -> str:
        """Return the progress as text for people."""
        return f"{self.file}: {format_bytes(self.done_bytes)} of {format_bytes(self.total_bytes)}"
