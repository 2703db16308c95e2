"""Jobs that survive their process: rows of a JSON-lines file in, one result per row out, each written once.

It handles lines, numbers and locks. It does not know what a row means or what answers it.

A result is one line. One call writes it, newline included, and syncs it to disk before the next row's. A
process that is killed therefore leaves whole lines, and at most one torn line at the end. The next start cuts
that one off and continues with the rows that have no line. Results are in the order in which they were ready.
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
except ImportError:  # Windows has none: there, nothing stops two processes from running one job
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One row of a job.

    Attributes:
        number: its line, from 1.
        digest: a hash of the line, so that a result is never attributed to another row.
        id: the row's own id, or its number if it has none.
        fields: its contents, without the id.
        error: why it cannot be read; None if it can.
    """

    number: int
    digest: str
    id: Any
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(path: Path) -> list[JobRow]:
    """Return the rows of a JSON-lines file, without empty lines. A line that is not an object has an error.

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
        return JobRow(number=number, digest=digest, id=number, error=f"the row is not JSON: {error}")
    if not isinstance(fields, dict):
        error_text = 'a row must be a JSON object such as {"prompt": "..."}'
        return JobRow(number=number, digest=digest, id=number, error=error_text)
    return JobRow(number=number, digest=digest, id=fields.pop("id", number), fields=fields)


class ResultFile:
    """The results of a job, on disk; a context manager that locks the file.

    Attributes:
        done: the numbers of the rows that have a result.
        num_errors: how many of these results are errors.
    """

    def __init__(self, path: Path, rows: Sequence[JobRow]) -> None:
        """Open or create `path`, and find out which of `rows` have a result.

        Raises:
            JobError: the file cannot be opened, another process is writing to it, or it holds anything but
                results of these rows.
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
            self._read_existing()
        except BaseException:
            os.close(self._file)
            raise

    def write(self, row: JobRow, result: Mapping[str, Any]) -> None:
        """Append the result of `row`; it is on disk when this returns.

        Raises:
            JobError: the disk refused it.
        """
        assert row.number not in self.done, "a row has one result"
        fields = {"row": row.number, "id": row.id, **result, "digest": row.digest}
        line = json.dumps(fields, ensure_ascii=False) + "\n"
        content = line.encode("utf-8", "backslashreplace")
        try:
            if os.write(self._file, content) != len(content):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            raise JobError(
                f"cannot write to the results {self._path}: {error.strerror or error}; "
                "start again to continue"
            ) from error
        self.done.add(row.number)
        self.num_errors += "error" in result

    def close(self) -> None:
        """Close the file and release the lock."""
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
                f"another process is writing to the results {self._path}: wait for it, or give another file"
            ) from error

    def _read_existing(self) -> None:
        """Count the existing results, and cut off a line that a killed process has torn."""
        with os.fdopen(os.dup(self._file), "rb") as reader:
            reader.seek(0)
            content = reader.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            self._count_existing(number, line)
        if len(whole) < len(content):
            torn = content[len(whole) :]
            if not torn.startswith(b'{"row": '[: len(torn)]):
                raise self._unknown_line(len(self.done) + 1, "it does not begin like a result")
            os.ftruncate(self._file, len(whole))
            os.fsync(self._file)

    def _count_existing(self, line_number: int, line: bytes) -> None:
        try:
            result = json.loads(line)
            number, digest = result["row"], result["digest"]
        except (ValueError, TypeError, KeyError) as error:
            raise self._unknown_line(line_number, "it is not a result") from error
        row = self._rows.get(number)
        if row is None or row.digest != digest:
            raise self._unknown_line(line_number, f"row {number} has changed since")
        if number in self.done:
            raise self._unknown_line(line_number, f"row {number} already has a result")
        self.done.add(number)
        self.num_errors += "error" in result

    def _unknown_line(self, line_number: int, reason: str) -> JobError:
        return JobError(
            f"line {line_number} of {self._path} is not a result of this job ({reason}): "
            "give another file for the results, or the rows that belong to it"
        )
