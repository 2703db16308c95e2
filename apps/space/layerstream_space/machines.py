"""Machines that one might have, as the numbers the planner needs. Data alone; rates are data-sheet figures, none was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GB = 10**9
MIB = 1024**2

THIS_MACHINE = "This machine"
"""The choice whose figures are measured here."""


def _card(
    memory_gb: int, host_gb: int, *, disk: float, copy: float, memory: float, flops: float
) -> dict[str, Any]:
    return {
        "device": "cuda:0",
        "device_memory_bytes": memory_gb * GB,
        "host_memory_bytes": host_gb * GB,
        "disk_bytes_per_s": disk * GB,
        "copy_bytes_per_s": copy * GB,
        "memory_bytes_per_s": memory * GB,
        "flops_per_s": flops * 1e12,
        "runtime_bytes": 512 * MIB,
        "measured": False,
    }


MACHINES: Mapping[str, dict[str, Any] | None] = {
    "T4: 16 GB card, 32 GB of RAM": _card(16, 32, disk=2.0, copy=10, memory=300, flops=65),
    "Laptop: 4 GB card, 16 GB of RAM": _card(4, 16, disk=2.5, copy=10, memory=190, flops=15),
    "Desktop: 24 GB card, 64 GB of RAM": _card(24, 64, disk=5.0, copy=24, memory=930, flops=140),
    "Two-core cloud CPU, 16 GB": {
        "device": "cpu",
        "device_memory_bytes": 16 * GB,
        "host_memory_bytes": 16 * GB,
        "disk_bytes_per_s": 1.0 * GB,
        "copy_bytes_per_s": 6.0 * GB,
        "memory_bytes_per_s": 15.0 * GB,
        "flops_per_s": 1.5e11,
        "runtime_bytes": 40 * MIB,
        "measured": False,
    },
    THIS_MACHINE: None,
}
"""Machines by the name that visitors choose; None is the one that the app runs on."""


def machine_called(name: str) -> dict[str, Any] | None:
    """Return the figures of the machine called `name`, its name among them; None for this one.

    Raises:
        KeyError: there is no such machine.
    """
    figures = MACHINES[name]
    return None if figures is None else {"name": name.partition(":")[0], **figures}
