"""Machines that the user describes, in a file or in a line of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import PlanError
from ..spec.profiles import Machine
from ..spec.sizes import parse_size

_REQUIRED = ("device_memory_bytes", "host_memory_bytes")


def machine_from_text(text: str) -> Machine:
    """Return the machine that `text` describes.

    Args:
        text: the path of a JSON file with `Machine`'s fields, where sizes may be text such as `"16GB"` and
            rates may be left out; or `gpu=16GB,ram=32GB,disk=2.5GB`, where `gpu` and `disk` may be left out.

    Raises:
        PlanError: the file cannot be read, or the text is neither.
    """
    return _machine_from_pairs(text) if "=" in text else _machine_from_file(Path(text))


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


def _machine_from_pairs(text: str) -> Machine:
    sizes: dict[str, int] = {}
    for pair in text.split(","):
        key, _, value = pair.partition("=")
        if key.strip() not in ("gpu", "ram", "disk"):
            raise PlanError(
                f"unknown key {key.strip()!r} in the machine {text!r}: write gpu=16GB,ram=32GB,disk=2.5GB "
                "(disk is per second)"
            )
        sizes[key.strip()] = parse_size(value.removesuffix("/s"))
    if "ram" not in sizes:
        raise PlanError(f"the machine {text!r} lacks ram=...: the host memory is needed")
    fields: dict[str, Any] = {
        "host_memory_bytes": sizes["ram"],
        "device_memory_bytes": sizes.get("gpu", sizes["ram"]),
    }
    if "disk" in sizes:
        fields["disk_bytes_per_s"] = float(sizes["disk"])
    if "gpu" in sizes:
        # a T4: cards with so little memory read it at 300 GB/s or more, and multiply at 65 TFLOP/s
        fields |= {
            "device": "cuda:0",
            "memory_bytes_per_s": 3.0e11,
            "flops_per_s": 6.5e13,
            "runtime_bytes": 512 * 1024**2,
        }
    return Machine(name=text, measured=False, **fields)
