"""Reads a batch's input file as hostile input: which lines it has, or what is wrong with it.

It knows no database and no model; what a body means is for the endpoint to judge, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from .json_text import is_storable, read_json, shorten
from .settings import BatchSettings
from .values import InputError

_MOST_ID_CHARS = 512
_SKIPPED_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLine:
    """A good line of an input file.

    Attributes:
        number: its place, from 1; empty lines count.
        custom_id: the client's name for it, unique in its file.
        offset: where it begins, in bytes.
        num_bytes: its length.
    """

    number: int
    custom_id: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCheck:
    """What a check found. The lines are complete only if there are no errors.

    Attributes:
        lines: the good lines.
        errors: what is wrong.
    """

    lines: tuple[InputLine, ...]
    errors: tuple[InputError, ...]


def check_input(source: BinaryIO, *, endpoint: str, settings: BatchSettings) -> InputCheck:
    """Read an input file line by line and check each one.

    Args:
        source: the file, open at its beginning.
        endpoint: the endpoint of the batch, which each line must name.
        settings: the limits.
    """
    lines: list[InputLine] = []
    errors: list[InputError] = []
    first_uses: dict[str, int] = {}
    offset = 0
    for number, raw, num_bytes in _raw_lines(source, settings.most_line_bytes):
        if raw is None or raw.strip():
            if len(lines) == settings.most_lines:
                errors.append(
                    _error(
                        "too_many_tasks", f"the file has more than {settings.most_lines:,} requests; split it"
                    )
                )
                break
            found = _check_line(number, raw, endpoint, first_uses, settings)
            if isinstance(found, InputError):
                errors.append(found)
            else:
                lines.append(InputLine(number=number, custom_id=found, offset=offset, num_bytes=num_bytes))
            if len(errors) == settings.most_errors:
                break
        offset += num_bytes
    if not lines and not errors:
        errors.append(_error("empty_file", "the file has no requests; put one JSON object on each line"))
    return InputCheck(lines=tuple(lines), errors=tuple(errors))


def read_body(raw: bytes) -> dict[str, Any]:
    """Return the request of a line that was checked before.

    Raises:
        ValueError: it is not the line that was checked.
    """
    line = read_json(raw)
    body = line.get("body") if isinstance(line, dict) else None
    if not isinstance(body, dict):
        raise ValueError("the line has no body")
    return body


def _raw_lines(source: BinaryIO, most_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield each line's number, its text and its length; None for a text that is longer than `most_bytes`."""
    number = 0
    while raw := source.readline(most_bytes + 1):
        number += 1
        if len(raw) <= most_bytes:
            yield number, raw, len(raw)
            continue
        num_bytes = len(raw)
        while not raw.endswith(b"\n") and (raw := source.readline(_SKIPPED_PIECE_BYTES)):
            num_bytes += len(raw)
        yield number, None, num_bytes


def _check_line(
    number: int, raw: bytes | None, endpoint: str, first_uses: dict[str, int], settings: BatchSettings
) -> str | InputError:
    """Return the custom id of a good line, or what is wrong with the line."""
    if raw is None:
        text = f"the line is longer than {settings.most_line_bytes:,} bytes; shorten it"
        return _error("line_too_long", text, number)
    try:
        line = read_json(raw)
    except ValueError:
        return _error("invalid_json_line", "This line is not parseable as valid JSON.", number)
    if not isinstance(line, dict):
        return _error("invalid_json_line", 'the line must be an object, such as {"custom_id": "..."}', number)
    custom_id = line.get("custom_id")
    error = (
        _check_custom_id(number, line, first_uses)
        or _check_value(number, line, "method", "POST", "invalid_method")
        or _check_value(number, line, "url", endpoint, "url_mismatch")
        or _check_body(number, line)
    )
    if isinstance(custom_id, str):
        first_uses.setdefault(custom_id, number)
    return error or str(custom_id)


def _check_custom_id(number: int, line: dict[str, Any], first_uses: dict[str, int]) -> InputError | None:
    custom_id = line.get("custom_id")
    if custom_id is None:
        return _missing("custom_id", number)
    is_good = isinstance(custom_id, str) and 0 < len(custom_id) <= _MOST_ID_CHARS and is_storable(custom_id)
    if not is_good:
        text = f"custom_id must be text of 1 to {_MOST_ID_CHARS} characters, not {shorten(custom_id)}"
        return _error("invalid_custom_id", text, number, "custom_id")
    if custom_id in first_uses:
        text = (
            f"line {first_uses[custom_id]} has the custom_id {shorten(custom_id)} too; give each line its own"
        )
        return _error("duplicate_custom_id", text, number, "custom_id")
    return None


def _check_value(number: int, line: dict[str, Any], name: str, right: str, code: str) -> InputError | None:
    if name not in line:
        return _missing(name, number)
    if line[name] != right:
        return _error(
            code, f"{name} must be {right!r} in this batch, not {shorten(line[name])}", number, name
        )
    return None


def _check_body(number: int, line: dict[str, Any]) -> InputError | None:
    if "body" not in line:
        return _missing("body", number)
    if not isinstance(line["body"], dict):
        return _error("invalid_body", "body must be an object: the request itself", number, "body")
    if line["body"].get("stream"):
        return _error("invalid_body", "a batch cannot stream; leave out stream", number, "body.stream")
    return None


def _missing(name: str, number: int) -> InputError:
    return _error("missing_required_parameter", f"the line has no {name}", number, name)


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> InputError:
    return InputError(code=code, message=message, line=line, param=param)
