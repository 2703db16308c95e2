"""Machines that the user describes, in a file or in a line of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import PlanError
from ..spec.machine_text import machine_from_figures
from ..spec.profiles import Machine
from ..spec.sizes import parse_size

_REQUIRED = ("device_memory_bytes", "host_memory_bytes")


def machine_from_text(text: str) -> Machine:
    """Return the machine that `text` describes.

    Args:
        text: the path of a JSON file with `Machine`'s fields, where sizes may be text such as `"16GB"` and
            rates may be left out; or a line of figures, as `machine_from_figures` reads it.

    Raises:
        PlanError: the file cannot be read, or the text is neither.
    """
    return machine_from_figures(text) if "=" in text else _machine_from_file(Path(text))


def _machine_from_file(path: Path) -> Machine:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(
            f"cannot read the machine {path}: {error}; write one with 'layerstream probe --json'"
        ) from error
    if not isinstance(given, dict):
        raise PlanError(f"cannot use the machine {path}: it must hold a JSON object with Machine's fields")
    if missing := [name for name in _REQUIRED if name not in given]:
        raise PlanError(f"cannot use the machine {path}: it lacks {', '.join(missing)}")
    defaults = Machine(device_memory_bytes=0, host_memory_bytes=0).to_dict()
    try:
        return Machine.from_dict(defaults | {name: _as_bytes(name, value) for name, value in given.items()})
    except PlanError as error:
        raise PlanError(f"cannot use the machine {path}: {error}") from error


def _as_bytes(name: str, value: Any) -> Any:
    if not name.endswith("_bytes"):
        return value
    if isinstance(value, str):
        return parse_size(value)
    # JSON reads 16e9 as a float
    return int(value) if isinstance(value, float) and value.is_integer() else value
