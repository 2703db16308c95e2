"""Events of a running case: one JSON object per line on a worker's pipe, the same for in-process runs.

No torch, no layerstream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .case import Case
from .measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in one case.

    Attributes:
        case: the case it belongs to.
        kind: `started`, `phase` (data: phase), `token` (data: index, id, text), `plan` and `spans` (from a
            streamed case with a timeline), `verified` (from one with a draft too: drafted, accepted, tokens
            of a sweep), `waiting` (a heartbeat, if the consumer requested one), `finished`
            (measurement is set) or `skipped` (the results already hold a measurement, which is set).
        data: depends on the kind.
        measurement: of a finished or skipped case.
    """

    case: Case
    kind: str
    data: dict[str, Any]
    measurement: Measurement | None = None


def worker_line(kind: str, **data: Any) -> str:
    """Return the line, newline included, that a worker writes to its pipe for one event."""
    return json.dumps({"kind": kind, **data}) + "\n"
