"""Jobs that survive their process: rows of a JSON-lines file in, one result a row out, each written once.

Layer: uses. Knows lines, numbers and locks; does not know what a row asks or what answers it.

A result is one line, written with its newline by one call and synced to the disk before the next row's. So a process that is killed
leaves whole lines and at most one torn one at the end; whoever opens the file next cuts that off and goes on with the rows that
have no line. Results stand in the order in which they came.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import JobError

try:
    import fcntl
except ImportError:  # Windows has none: two processes on one job are not told apart there
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One row of a job.

    Attributes:
        number: its line, from 1.
        digest: of the line, so that results are never taken for those of another row.
        id: as the row gives it; its number where it gives none.
        fields: what it asks, without the id.
        error: why it cannot be read; None when it can.
    """

    number: int
    digest: str
    id: Any
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(path: Path) -> list[JobRow]:
    """Return the rows of a JSON-lines file; empty lines are none. A line that is no JSON object is a row with an error.

    Raises:
        JobError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise JobError(f"cannot read the rows {path}: {error.strerror or error}") from error
    return [_parse(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(number: int, line: bytes) -> JobRow:
    digest = hashlib.sha256(line.strip()).hexdigest()[:16]
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return JobRow(number=number, digest=digest, id=number, error=f"the row is no JSON: {error}")
    if not isinstance(fields, dict):
        return JobRow(
            number=number, digest=digest, id=number, error='a row is a JSON object such as {"prompt": "..."}'
        )
    return JobRow(number=number, digest=digest, id=fields.pop("id", number), fields=fields)


class ResultFile:
    """The results of a job, on disk; a context manager that holds the file for itself.

    Attributes:
        done: the numbers of the rows that have a result.
        num_errors: how many of these are errors.
    """

    def __init__(self, path: Path, rows: Sequence[JobRow]) -> None:
        """Open `path`, or make it, and find out which of `rows` have their result.

        Raises:
            JobError: it cannot be opened, another process writes to it, or it holds something else than results of these rows.
        """
        self.done: set[int] = set()
        self.num_errors = 0
        self._path = path
        self._rows = {row.number: row for row in rows}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise JobError(f"cannot open the results {path}: {error.strerror or error}") from error
        try:
            self._lock()
            self._take_stock()
        except BaseException:
            os.close(self._file)
            raise

    def write(self, row: JobRow, result: Mapping[str, Any]) -> None:
        """Append the result of `row`; when this returns, it is on the disk.

        Raises:
            JobError: the disk did not take it.
        """
        assert row.number not in self.done, "a row has one result"
        line = (
            json.dumps({"row": row.number, "id": row.id, **result, "digest": row.digest}, ensure_ascii=False)
            + "\n"
        )
        content = line.encode("utf-8", "backslashreplace")
        try:
            if os.write(self._file, content) != len(content):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            raise JobError(
                f"cannot write to the results {self._path}: {error.strerror or error}; start again to go on"
            ) from error
        self.done.add(row.number)
        self.num_errors += "error" in result

    def close(self) -> None:
        """Close the file and let others have it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> ResultFile:
        """Return this file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JobError(
                f"another process writes to the results {self._path}: wait for it, or give another file"
            ) from error

    def _take_stock(self) -> None:
        """Read what is there, and cut off a line that a killed process has torn."""
        with os.fdopen(os.dup(self._file), "rb") as reading:
            reading.seek(0)
            content = reading.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            self._take(number, line)
        if len(whole) < len(content):
            if not content[len(whole) :].startswith(b'{"row": '[: len(content) - len(whole)]):
                raise self._foreign(len(self.done) + 1, "it does not begin like a result")
            os.ftruncate(self._file, len(whole))
            os.fsync(self._file)

    def _take(self, line_number: int, line: bytes) -> None:
        try:
            result = json.loads(line)
            number, digest = result["row"], result["digest"]
        except (ValueError, TypeError, KeyError) as error:
            raise self._foreign(line_number, "it is no result") from error
        row = self._rows.get(number)
        if row is None or row.digest != digest:
            raise self._foreign(line_number, f"row {number} is another one now")
        if number in self.done:
            raise self._foreign(line_number, f"row {number} has a result already")
        self.done.add(number)
        self.num_errors += "error" in result

    def _foreign(self, line_number: int, reason: str) -> JobError:
        return JobError(
            f"line {line_number} of {self._path} is not a result of this job ({reason}): give another file for the results, or "
            "the rows that belong to it"
        )
