"""Machines to plan for, as figures. The rates come from data sheets; none was measured."""

from __future__ import annotations

from collections.abc import Mapping

from layerstream import Machine

GB = 10**9
MIB = 1024**2

THIS_MACHINE = "This machine"
"""The machine that the app runs on; its figures are measured."""


def _card(
    name: str, memory_gb: int, host_gb: int, *, disk: float, copy: float, memory: float, flops: float
) -> Machine:
    """Return a machine with a graphics card; rates in GB/s and TFLOP/s."""
    return Machine(
        name=name,
        device="cuda:0",
        device_memory_bytes=memory_gb * GB,
        host_memory_bytes=host_gb * GB,
        disk_bytes_per_s=disk * GB,
        copy_bytes_per_s=copy * GB,
        memory_bytes_per_s=memory * GB,
        flops_per_s=flops * 1e12,
        runtime_bytes=512 * MIB,
        measured=False,
    )


MACHINES: Mapping[str, Machine | None] = {
    "T4: 16 GB card, 32 GB of RAM": _card("T4", 16, 32, disk=2.0, copy=10, memory=300, flops=65),
    "Laptop: 4 GB card, 16 GB of RAM": _card("Laptop", 4, 16, disk=2.5, copy=10, memory=190, flops=15),
    "Desktop: 24 GB card, 64 GB of RAM": _card("Desktop", 24, 64, disk=5.0, copy=24, memory=930, flops=140),
    "Two-core cloud CPU, 16 GB": Machine(
        name="Two-core cloud CPU, 16 GB",
        device="cpu",
        device_memory_bytes=16 * GB,
        host_memory_bytes=16 * GB,
        disk_bytes_per_s=1.0 * GB,
        copy_bytes_per_s=6.0 * GB,
        memory_bytes_per_s=15.0 * GB,
        flops_per_s=1.5e11,
        runtime_bytes=40 * MIB,
        measured=False,
    ),
    THIS_MACHINE: None,
}
"""Machines by the name that visitors choose; None stands for the machine that the app runs on."""
