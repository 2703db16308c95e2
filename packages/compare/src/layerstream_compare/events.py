"""What a worker tells while it works: one JSON object a line on a pipe, the same objects for in-process runs.

Words of this package: no torch, no layerstream.
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
        case: whose.
        kind: `started`, `phase` (data: phase), `token` (data: index, id, text), `plan` and `spans` (of a streamed case with a
            timeline), `waiting` (a heartbeat that the consumer asked for), `result` (data: a partial measurement's record; the
            worker's last line), `finished` (measurement is set) or `skipped` (it was in the results already).
        data: what belongs to the kind.
        measurement: of a finished or skipped case.
    """

    case: Case
    kind: str
    data: dict[str, Any]
    measurement: Measurement | None = None


def worker_line(kind: str, **data: Any) -> str:
    """Return what a worker writes on its pipe: one line, newline included."""
    return json.dumps({"kind": kind, **data}) + "\n"
