"""Parse a worker's lines and turn its last message, or its failure, into a measurement.

Pure: it does not know processes, pipes or time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from .case import Case
from .measurement import Measurement

LIVE_KINDS = ("phase", "token", "plan", "spans", "verified")
"""Message kinds that are passed on as events while the worker runs."""

FINAL_KINDS = ("result", "unavailable", "failed")
"""Message kinds that end a worker's output; nothing after them is read."""

_EXCERPT_BYTES = 120


class ProtocolError(ValueError):
    """A worker wrote a line that does not follow the protocol."""


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the message in `line`, which has no newline.

    Raises:
        ProtocolError: the line is not UTF-8, not a JSON object, or of an unknown kind.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the worker wrote a line that is not JSON: {_excerpt(line)}") from error
    if not isinstance(message, dict) or message.get("kind") not in LIVE_KINDS + FINAL_KINDS:
        raise ProtocolError(f"the worker wrote a message of unknown kind: {_excerpt(line)}")
    return message


def measurement_of(case: Case, message: dict[str, Any], *, isolation: str) -> Measurement:
    """Return the measurement for a worker's final message.

    A result that does not fit the schema becomes a failed measurement.
    """
    if message["kind"] != "result":
        reason = one_line(str(message.get("reason", ""))) or "the worker gave no reason"
        tail = str(message.get("stderr_tail", ""))
        return Measurement(
            case=case,
            status=message["kind"],
            reason=reason,
            stderr_tail=tail,
            isolation=isolation,
            hits_every_case=message.get("hits_every_case") is True,
        )
    result = {name: value for name, value in message.items() if name != "kind"}
    record = asdict(Measurement(case=case, status="ok"))
    try:
        return Measurement.from_json(
            json.dumps(record | result | {"case": asdict(case), "status": "ok", "isolation": isolation})
        )
    except (TypeError, ValueError, KeyError) as error:
        return failed(case, f"the worker's result does not fit the schema: {error!r}", isolation=isolation)


def failed(case: Case, reason: str, *, stderr_tail: str = "", isolation: str = "process") -> Measurement:
    """Return the measurement of a case that failed."""
    return Measurement(
        case=case, status="failed", reason=one_line(reason), stderr_tail=stderr_tail, isolation=isolation
    )


def one_line(text: str, *, limit: int = 600) -> str:
    """Return `text` as one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _excerpt(line: bytes) -> str:
    text = repr(line[:_EXCERPT_BYTES].decode(errors="replace"))
    return text if len(line) <= _EXCERPT_BYTES else f"{text} and {len(line) - _EXCERPT_BYTES} more bytes"
