"""Decide what becomes of each line of a results file when a job goes on: pure, no file is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .job_header import UNKNOWN_JOB, JobHeader
from .jobs import JobRow
from .stored_results import Matches, StoredLines, StoredResult


class Fate(Enum):
    """What happens to a line."""

    KEEP = auto()
    """It stays as it is."""

    DROP = auto()
    """It goes: an error that is tried again, or a header of no result."""

    SET_ASIDE = auto()
    """It goes to another file: an answer that belongs to no row any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The contents of a results file from now on.

    Attributes:
        fates: what happens to each line; a row where a result stays and its row has moved.
        first: a header to put above everything.
        last: a header to put below everything.
    """

    fates: Sequence[Fate | JobRow]
    first: JobHeader | None
    last: JobHeader | None

    @property
    def rewrites(self) -> bool:
        """Whether more happens than that a header is added at the end."""
        return self.first is not None or any(fate is not Fate.KEEP for fate in self.fates)


def decide_contents(stored: StoredLines, matches: Matches, job: JobHeader, *, retry_errors: bool) -> Contents:
    """Return what becomes of each line, so that every result stands below the header of what made it."""
    fates = _fates_of_results(stored, matches, retry_errors=retry_errors)
    has_result_below = False
    last = job
    for place in reversed(range(len(stored.lines))):
        line = stored.lines[place]
        if isinstance(line, JobHeader):
            is_ours = place == len(stored.lines) - 1 and not line.differences(job)
            fates[place] = Fate.KEEP if has_result_below or is_ours else Fate.DROP
            has_result_below = False
        elif fates[place] not in (Fate.DROP, Fate.SET_ASIDE):
            has_result_below = True
    kept = [
        line if isinstance(line, JobHeader) else None
        for line, fate in zip(stored.lines, fates, strict=True)
        if fate not in (Fate.DROP, Fate.SET_ASIDE)
    ]
    headers = [line for line in kept if line is not None]
    is_headless = bool(kept) and kept[0] is None
    latest = headers[-1] if headers else UNKNOWN_JOB
    is_marked = bool(kept) and not latest.differences(job)
    return Contents(fates=fates, first=UNKNOWN_JOB if is_headless else None, last=None if is_marked else last)


def _fates_of_results(stored: StoredLines, matches: Matches, *, retry_errors: bool) -> list[Fate | JobRow]:
    fates: list[Fate | JobRow] = []
    place = -1
    for line in stored.lines:
        if isinstance(line, JobHeader):
            fates.append(Fate.KEEP)
            continue
        place += 1
        fates.append(_fate_of(line, matches.rows.get(place), retry_errors=retry_errors))
    return fates


def _fate_of(result: StoredResult, row: JobRow | None, *, retry_errors: bool) -> Fate | JobRow:
    if result.error is not None and (row is None or retry_errors):
        return Fate.DROP
    if row is None:
        return Fate.SET_ASIDE
    return Fate.KEEP if row.number == result.number else row
