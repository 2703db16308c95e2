"""Rows of a job, each with its number, its digest and its id: lines of a JSON-lines file, or records.

It does not know what a row means or what answers it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import JobError
from .row_columns import KEYS_THEMSELVES, ColumnEmptyError, Columns

_SPECIAL_FILES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One row of a job.

    Attributes:
        number: its line, or its place in a table, from 1.
        digest: a hash of its text, so that a result is never attributed to another row.
        id: the row's own id, or its number if it has none.
        fields: its contents, without the id.
        error: why it cannot be read; None if it can.
    """

    number: int
    digest: str
    id: Any
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(path: Path, columns: Columns = KEYS_THEMSELVES) -> list[JobRow]:
    """Return the rows of a JSON-lines file, without empty lines. A line that is not an object has an error.

    Args:
        path: the file.
        columns: the keys that make a row, where others than its own are named.

    Raises:
        JobError: the file cannot be read, or is not a plain file.
    """
    refuse_special_file(
        path, f"the rows {path}", "save the rows to a file: a job reads them again when it is started again"
    )
    try:
        with path.open("rb") as lines:
            return [
                _parse(number, line, columns) for number, line in enumerate(lines, start=1) if line.strip()
            ]
    except OSError as error:
        raise JobError(f"cannot read the rows {path}: {error.strerror or error}") from error


def refuse_special_file(path: Path, what: str, advice: str) -> None:
    """Refuse a directory, a pipe, a device or a socket, and open none of them. A file need not exist.

    Raises:
        JobError: `path` is one of these.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it reports the reason
    kind = next((name for is_kind, name in _SPECIAL_FILES if is_kind(mode)), None)
    if kind is not None:
        raise JobError(f"{what}: this is {kind}, not a plain file; {advice}")


def row_of(number: int, record: Mapping[str, Any], columns: Columns = KEYS_THEMSELVES) -> JobRow:
    """Return the row that a record makes, such as a row of a table; an empty cell is as a key not there.

    Args:
        number: its place, from 1.
        record: its keys and values.
        columns: the keys that make a row, where others than its own are named.
    """
    fields, error = _without_nulls(record), None
    if columns:
        try:
            fields = columns.take(fields)
        except ColumnEmptyError as reason:
            error = str(reason)
    text = json.dumps(fields, sort_keys=True, default=str, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    # with named columns, custom_id is one of the others
    row_id = fields.pop("id", number) if columns else _id_of(fields, number)
    return JobRow(number=number, digest=digest, id=row_id, fields=fields, error=error)


def _id_of(fields: dict[str, Any], number: int) -> Any:
    """Take the id out of the fields of a row. The one of an OpenAI batch stays there."""
    return fields["custom_id"] if "custom_id" in fields else fields.pop("id", number)


def _without_nulls(value: Any) -> Any:
    """Return `value` without keys whose value is null: a table has every key in every row."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _parse(number: int, line: bytes, columns: Columns) -> JobRow:
    digest = hashlib.sha256(line.strip()).hexdigest()[:16]
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return JobRow(number=number, digest=digest, id=number, error=f"the row is not JSON: {error}")
    if not isinstance(fields, dict):
        error_text = 'a row must be a JSON object such as {"prompt": "..."}'
        return JobRow(number=number, digest=digest, id=number, error=error_text)
    if columns:
        return row_of(number, fields, columns)
    return JobRow(number=number, digest=digest, id=_id_of(fields, number), fields=fields)
