"""Read a results file line by line, and find out which results belong to which rows. Changes nothing.

A result belongs to the row of the same text. It is first looked for at its old place, then anywhere, so that
rows may be added, removed and moved.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from .job_header import KEY, UNKNOWN_JOB, JobHeader
from .jobs import JobRow

_BEGINNINGS = (b'{"row": ', b'{"' + KEY.encode() + b'": ')


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """One result of a results file.

    Attributes:
        number: the row's line at the time.
        digest: the row's digest.
        id: the row's id.
        error: the error's text; None if the row was answered.
    """

    number: int
    digest: str
    id: Any
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLines:
    """The contents of a results file.

    Attributes:
        lines: every whole line, in order.
        whole_bytes: their length; a line that a killed process has torn comes after them.
        problem: why the file is not a results file; None if it is one.
    """

    lines: Sequence[JobHeader | StoredResult]
    whole_bytes: int
    problem: str | None = None

    @property
    def results(self) -> list[StoredResult]:
        """The results, in order."""
        return [line for line in self.lines if isinstance(line, StoredResult)]

    @property
    def latest_job(self) -> JobHeader | None:
        """The header above the last result; None if there is no result."""
        header, latest = UNKNOWN_JOB, None
        for line in self.lines:
            if isinstance(line, JobHeader):
                header = line
            else:
                latest = header
        return latest


def read_stored(file: int) -> StoredLines:
    """Return what the open file `file` holds; stops at the first line that is not a result or a header."""
    lines: list[JobHeader | StoredResult] = []
    whole_bytes = 0
    with reading(file) as reader:
        # a file of something else may be one endless line
        if not _begins_like_ours(reader.peek(1)):
            return StoredLines(lines=(), whole_bytes=0, problem="line 1: it does not begin like a result")
        for line in reader:
            where = f"line {len(lines) + 1}"
            if not line.endswith(b"\n"):
                # after a power failure, a line may have its length and not its bytes
                if not _begins_like_ours(line.rstrip(b"\0")):
                    problem = f"{where}: it does not begin like a result"
                    return StoredLines(lines=lines, whole_bytes=whole_bytes, problem=problem)
                break
            try:
                lines.append(_parse(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                reason = str(error) if isinstance(error, _WrongFormatError) else "it is not a result"
                return StoredLines(lines=lines, whole_bytes=whole_bytes, problem=f"{where}: {reason}")
            whole_bytes += len(line)
    return StoredLines(lines=lines, whole_bytes=whole_bytes)


class _WrongFormatError(ValueError):
    """A header of another version."""


def _parse(line: bytes) -> JobHeader | StoredResult:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise TypeError("a line is a JSON object")
    if KEY in record:
        try:
            return JobHeader.from_record(record)
        except ValueError as wrong:
            raise _WrongFormatError(str(wrong)) from wrong
    number, digest, error = record["row"], record["digest"], record.get("error")
    if type(number) is not int or not isinstance(digest, str):
        raise TypeError("row is a number, and digest is text")
    return StoredResult(
        number=number,
        digest=digest,
        id=record.get("id", number),
        error=None if error is None else error_text(error),
    )


def error_text(error: object) -> str:
    """Return the text of a result's error: a text, or an object with a message as in OpenAI's batches."""
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _begins_like_ours(text: bytes) -> bool:
    return any(text[: len(beginning)] == beginning[: len(text)] for beginning in _BEGINNINGS)


@contextmanager
def reading(file: int) -> Iterator[BufferedReader]:
    """Yield a reader from the start of the open file `file`, which stays open."""
    with os.fdopen(os.dup(file), "rb") as reader:
        reader.seek(0)
        yield reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Which results belong to which rows.

    Attributes:
        rows: the row of each result that has one, by the result's place.
        repaired: the places of results whose row has another text now.
        gone: the places of results whose row is no longer there.
    """

    rows: Mapping[int, JobRow]
    repaired: frozenset[int]
    gone: frozenset[int]


def match_results(results: Sequence[StoredResult], rows: Sequence[JobRow]) -> Matches:
    """Return the row of each result: the one with the same text, at its old place if possible.

    Of identical rows, each gets a result of its own.
    """
    open_rows = {row.number: row for row in rows}
    matched: dict[int, JobRow] = {}
    for place, result in enumerate(results):
        row = open_rows.get(result.number)
        if row is not None and row.digest == result.digest:
            matched[place] = open_rows.pop(row.number)
    by_digest: dict[str, deque[JobRow]] = defaultdict(deque)
    for row in open_rows.values():
        by_digest[row.digest].append(row)
    for place, result in enumerate(results):
        if place not in matched and by_digest[result.digest]:
            row = by_digest[result.digest].popleft()
            matched[place] = open_rows.pop(row.number)
    ids = {_hashable(row.id) for row in open_rows.values()}
    left = {place: result for place, result in enumerate(results) if place not in matched}
    repaired = {
        place for place, result in left.items() if result.number in open_rows or _hashable(result.id) in ids
    }
    return Matches(rows=matched, repaired=frozenset(repaired), gone=frozenset(set(left) - repaired))


def _hashable(row_id: Any) -> str:
    return json.dumps(row_id, sort_keys=True)
