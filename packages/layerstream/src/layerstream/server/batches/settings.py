"""Limits of files and batches. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What clients may ask for, and how batches are worked on. The defaults are OpenAI's where it has any.

    Attributes:
        most_lines: requests in one input file.
        most_file_bytes: size of one uploaded file.
        most_line_bytes: size of one line of an input file.
        most_files: files kept, outputs included; an upload beyond that is refused, an output never.
        most_open_batches: batches that have not ended.
        most_errors: errors listed for one input file; the check ends there.
        expires_after_s: seconds after its creation when a batch takes no more lines; a streamed model needs
            more time than OpenAI's 24 hours.
        lines_in_flight: lines that are answered at the same time.
        retry_s: the first wait when the server's queue is full, or the disk refuses to write; it doubles.
        most_retry_s: the longest such wait.
    """

    most_lines: int = 50_000
    most_file_bytes: int = 200 * 1024**2
    most_line_bytes: int = 16 * 1024**2
    most_files: int = 1_000
    most_open_batches: int = 100
    most_errors: int = 100
    expires_after_s: int = 30 * 24 * 60 * 60
    lines_in_flight: int = 8
    retry_s: float = 0.5
    most_retry_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse limits under which nothing would run."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
