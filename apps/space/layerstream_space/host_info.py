"""Read a few figures about this machine, for the masthead, from the system's own files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """This machine.

    Attributes:
        cores: CPU cores that this process may use.
        memory_bytes: memory of the machine, or of the control group if that is less; 0 if unknown.
        has_gpu: True if a compute driver's device file exists.
    """

    cores: int
    memory_bytes: int
    has_gpu: bool


def read_host_info() -> HostInfo:
    """Return the figures of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = (
        [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
        if "SC_PHYS_PAGES" in os.sysconf_names
        else []
    )
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        limit = ""
    sizes += [int(limit)] if limit.isdigit() else []
    return HostInfo(
        cores=cores,
        memory_bytes=min(sizes, default=0),
        has_gpu=any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd")),
    )
