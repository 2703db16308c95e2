"""A machine as a line of figures, such as `gpu=16GB,ram=32GB,disk=2.5GB/s`: read, and written.

The command line and the app's page share it, so that the same figures give the same plan in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import PlanError
from .profiles import Machine
from .sizes import parse_size

EXAMPLE = "gpu=16GB,ram=32GB,disk=2.5GB/s,pcie=12GB/s"

CARD_RUNTIME_BYTES = 512 * 1024**2
"""Memory of a card that the driver's context and workspaces take. Assumed."""

_CARD_RATES = {"vram": 3.0e11, "tflops": 6.5e13}
"""A T4's: cards with so little memory read it at 300 GB/s or more, and multiply at 65 TFLOP/s."""


def _rate(text: str) -> float:
    return float(parse_size(text.strip().removesuffix("/s")))


def _teraflops(text: str) -> float:
    try:
        value = float(text) * 1e12
    except ValueError:
        value = 0.0
    # also refuses nan
    if not 0.0 < value < float("inf"):
        raise PlanError(f"{text!r} is not a number of TFLOP/s: write a number above 0, such as tflops=65")
    return value


_KEYS: Mapping[str, Callable[[str], float]] = {
    "gpu": parse_size,
    "ram": parse_size,
    "disk": _rate,
    "pcie": _rate,
    "vram": _rate,
    "tflops": _teraflops,
}
"""How each key's value is read."""

_RATE_FIELDS = {
    "disk": "disk_bytes_per_s",
    "pcie": "copy_bytes_per_s",
    "vram": "memory_bytes_per_s",
    "tflops": "flops_per_s",
}


def machine_from_figures(text: str) -> Machine:
    """Return the machine that a line of figures describes; what it leaves out is assumed.

    Args:
        text: `key=value` pairs with commas between them. `ram` is required. `gpu` is the memory of a card;
            without it, the machine has none. `disk`, `pcie` and `vram` are bytes per second: of the disk,
            of copies to the card, and of the device's own memory. `tflops` is its arithmetic.

    Raises:
        PlanError: a key is unknown or given twice, a value is not a size, or `ram` is missing.
    """
    values = _values(text)
    if "ram" not in values:
        raise PlanError(f"the machine {text!r} lacks ram=...: the host memory is needed")
    has_card = "gpu" in values
    rates = (_CARD_RATES if has_card else {}) | {key: values[key] for key in _RATE_FIELDS if key in values}
    host_memory_bytes = int(values["ram"])
    machine = Machine(
        name=text,
        device="cuda:0" if has_card else "cpu",
        device_memory_bytes=int(values.get("gpu", host_memory_bytes)),
        host_memory_bytes=host_memory_bytes,
        runtime_bytes=CARD_RUNTIME_BYTES if has_card else 0,
        measured=False,
    )
    fields: dict[str, Any] = {_RATE_FIELDS[key]: rate for key, rate in rates.items()}
    return replace(machine, **fields)


def _values(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for pair in text.split(","):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in _KEYS:
            raise PlanError(
                f"unknown key {key!r} in the machine {text!r}: write {EXAMPLE} "
                f"(the keys are {', '.join(_KEYS)})"
            )
        if key in values:
            raise PlanError(f"the machine {text!r} gives {key} twice: give it once")
        values[key] = _KEYS[key](value)
    return values
