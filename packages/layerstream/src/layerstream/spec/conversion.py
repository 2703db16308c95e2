"""How far a conversion is, and what it has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .sizes import format_bytes, format_rate, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionProgress:
    """How far a conversion is.

    Attributes:
        files_done: files of weights that are complete, those of an earlier attempt included.
        num_files: files of weights in all.
        bytes_done: bytes of weights written, those of an earlier attempt included.
        total_bytes: bytes of weights in all.
        bytes_per_s: the rate of this attempt so far.
    """

    files_done: int
    num_files: int
    bytes_done: int
    total_bytes: int
    bytes_per_s: float

    def explain(self) -> str:
        """Return it as one line."""
        left_bytes = self.total_bytes - self.bytes_done
        parts = [
            f"{format_bytes(self.bytes_done)} of {format_bytes(self.total_bytes)}",
            f"file {min(self.files_done + 1, self.num_files)} of {self.num_files}",
        ]
        if self.bytes_per_s > 0:
            parts += [
                format_rate(self.bytes_per_s),
                f"about {format_seconds(left_bytes / self.bytes_per_s)} left",
            ]
        return " · ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What a conversion has made.

    Attributes:
        target: the folder.
        num_files: its files of weights.
        num_tensors: the tensors in them.
        weight_bytes: bytes of the tensors.
        kept_bytes: bytes of weights that an earlier, interrupted conversion had written.
        seconds: what this one took.
        notes: what the user should know about the values, in sentences.
    """

    target: Path
    num_files: int
    num_tensors: int
    weight_bytes: int
    kept_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    def explain(self) -> str:
        """Return it as one line, without the notes."""
        written_bytes = self.weight_bytes - self.kept_bytes
        files = "1 file" if self.num_files == 1 else f"{self.num_files} files"
        kept = f", {format_bytes(self.kept_bytes)} of it from an earlier attempt" if self.kept_bytes else ""
        rate = f" ({format_rate(written_bytes / self.seconds)})" if self.seconds > 0 else ""
        return (
            f"{self.num_tensors} tensors, {format_bytes(self.weight_bytes)} in {files}{kept}, "
            f"in {format_seconds(self.seconds)}{rate}"
        )
