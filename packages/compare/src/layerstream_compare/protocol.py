"""What a worker's lines mean, and what a case's measurement is when they do not come.

Pure: it knows lines and measurements, and deliberately nothing of processes, pipes or time. No torch, no layerstream.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from .case import Case
from .measurement import Measurement

LIVE_KINDS = ("phase", "token", "plan", "spans")
"""Kinds that are handed on while the worker works."""

LAST_KINDS = ("result", "unavailable", "failed")
"""Kinds that end a worker's report; nothing after them is read."""

_SHOWN_CHARACTERS = 120


class ProtocolError(ValueError):
    """A worker wrote something that is no line of the protocol."""


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the message in one line of a worker, newline excluded.

    Raises:
        ProtocolError: the line is not UTF-8, no JSON object, or of an unknown kind.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the worker wrote garbage: {_shown(line)}") from error
    if not isinstance(message, dict) or message.get("kind") not in LIVE_KINDS + LAST_KINDS:
        raise ProtocolError(f"the worker wrote a line of no known kind: {_shown(line)}")
    return message


def measurement_of(case: Case, message: dict[str, Any], *, isolation: str) -> Measurement:
    """Return the measurement that a worker's last message tells of.

    A result that does not fit the schema becomes a failed measurement, as any other garbage does.
    """
    if message["kind"] != "result":
        reason = one_line(str(message.get("reason", ""))) or "the worker gave no reason"
        tail = str(message.get("stderr_tail", ""))
        return Measurement(
            case=case, status=message["kind"], reason=reason, stderr_tail=tail, isolation=isolation
        )
    told = {name: value for name, value in message.items() if name != "kind"}
    told = told.pop("data", told)
    record = asdict(Measurement(case=case, status="ok"))
    try:
        return Measurement.from_json(
            json.dumps(record | told | {"case": asdict(case), "status": "ok", "isolation": isolation})
        )
    except (TypeError, ValueError, KeyError) as error:
        return failed(case, f"the worker's result is not understood: {error!r}", isolation=isolation)


def failed(case: Case, reason: str, *, stderr_tail: str = "", isolation: str = "process") -> Measurement:
    """Return the measurement of a case that did not work out."""
    return Measurement(
        case=case, status="failed", reason=one_line(reason), stderr_tail=stderr_tail, isolation=isolation
    )


def one_line(text: str, *, limit: int = 600) -> str:
    """Return `text` as one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _shown(line: bytes) -> str:
    text = repr(line[:_SHOWN_CHARACTERS].decode(errors="replace"))
    return (
        text if len(line) <= _SHOWN_CHARACTERS else f"{text} and {len(line) - _SHOWN_CHARACTERS} bytes more"
    )
