"""What the commands print with: tables and notes for people, JSON for programs.

Room: surfaces. Answers go to stdout; whatever only accompanies them (plans before an answer, reports, errors) goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rich.console import Console

from ..spec.plans import PlacementPlan


def out_console() -> Console:
    """Return a console on the stdout of this moment (tests and shells exchange it)."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def err_console() -> Console:
    """Return a console on the stderr of this moment."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print `text` to stderr, dimmed on a terminal."""
    err_console().print(text, style="dim", markup=False)


def print_json(value: Any) -> None:
    """Print `value` to stdout as JSON; see `jsonable`."""
    sys.stdout.write(json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n")


def jsonable(value: Any) -> Any:
    """Return `value` with dataclasses as objects, enums as their values, paths as text and tuples as lists."""
    if isinstance(value, PlacementPlan):
        return plan_fields(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: jsonable(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    return value


def plan_fields(plan: PlacementPlan) -> dict[str, Any]:
    """Return the fields of `plan` as JSON-ready values, with the ledger's sums."""
    shown = {each.name: jsonable(getattr(plan, each.name)) for each in fields(plan)}
    shown["ledger"]["device_bytes"] = plan.ledger.device_bytes
    shown["ledger"]["host_bytes"] = plan.ledger.host_bytes
    return shown
