"""The memory that a loaded model takes at its peak, measured.

It reads the process's and the device's own counters. It does not know what uses the memory.
"""

from __future__ import annotations

import psutil
import torch

from ..streaming.runtime import DeviceRuntime


def held_host_bytes(runtime: DeviceRuntime) -> int:
    """Return the host memory that this process holds now.

    With an accelerator that is its own memory, pinned or not (RssAnon and RssShmem), without the libraries'
    files, of which drivers map a lot. On a CPU device it is everything.
    """
    status = {} if runtime.is_host else _status_bytes()
    if "RssAnon" not in status:
        return int(psutil.Process().memory_info().rss)
    return status["RssAnon"] + status.get("RssShmem", 0)


class PeakMemory:
    """The peak since loading.

    On the host it is the largest sample after a forward; on a CPU device it is the kernel's high-water mark
    once that has moved.
    """

    def __init__(self, runtime: DeviceRuntime, baseline_bytes: int) -> None:
        """Start measuring.

        Args:
            runtime: the device.
            baseline_bytes: `held_host_bytes` before anything was loaded.
        """
        self._runtime, self._baseline_bytes = runtime, baseline_bytes
        self._mark_bytes = _high_water_bytes()
        self._sampled_bytes = 0
        self.sample()

    def sample(self) -> None:
        """Record the memory in use now."""
        self._sampled_bytes = max(self._sampled_bytes, held_host_bytes(self._runtime))

    def bytes(self) -> tuple[int, int]:
        """Return (device, host) peak bytes above the baseline; on a CPU device the two are the same."""
        self.sample()
        peak = self._sampled_bytes
        if self._runtime.is_host and _high_water_bytes() > self._mark_bytes:
            peak = _high_water_bytes()
        host = max(0, peak - self._baseline_bytes)
        module = torch.get_device_module(self._runtime.device)
        if self._runtime.is_host or not hasattr(module, "max_memory_allocated"):
            return host, host
        return int(module.max_memory_allocated(self._runtime.device)), host


def _high_water_bytes() -> int:
    return _status_bytes().get("VmHWM", 0)


def _status_bytes() -> dict[str, int]:
    """Return the sizes in the kernel's status of this process; empty where it has none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            fields = [line.split() for line in status if line.rstrip().endswith(" kB")]
    except OSError:
        return {}
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}
