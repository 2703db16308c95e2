"""JSON as this server reads and writes it: strict, and always storable as UTF-8."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def read_json(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON in UTF-8, holds NaN or Infinity, or is nested too deeply.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_json(value: Any) -> str:
    """Return `value` as one line of JSON in ASCII, which holds half surrogate pairs too.

    Raises:
        ValueError: it holds NaN or Infinity.
        TypeError: it holds what JSON does not have.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def is_storable(text: str) -> bool:
    """Return whether `text` is proper Unicode; half a surrogate pair, which JSON can hold, is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(value: Any, most_chars: int = 80) -> str:
    """Return a client's value as it is quoted in a message."""
    text = ascii(value) if isinstance(value, str) and not is_storable(value) else repr(value)
    return text if len(text) <= most_chars else f"{text[:most_chars]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
