"""The memory that a loaded model takes at its peak, measured.

It reads the process's and the device's own counters. It does not know what uses the memory.
"""

from __future__ import annotations

import psutil
import torch

from ..streaming.runtime import DeviceRuntime


class PeakMemory:
    """The peak since loading.

    On the host it is the kernel's high-water mark once that has moved, and the largest sample between
    forwards before that.
    """

    def __init__(self, runtime: DeviceRuntime, baseline_bytes: int) -> None:
        """Start measuring.

        Args:
            runtime: the device.
            baseline_bytes: the process's resident memory before anything was loaded.
        """
        self._runtime, self._baseline_bytes = runtime, baseline_bytes
        self._mark_bytes = _high_water_bytes()
        self._sampled_bytes = 0
        self._process = psutil.Process()

    def sample(self) -> None:
        """Record the memory in use now."""
        self._sampled_bytes = max(self._sampled_bytes, self._process.memory_info().rss)

    def bytes(self) -> tuple[int, int]:
        """Return (device, host) peak bytes above the baseline; on a CPU device the two are the same."""
        self.sample()
        mark = _high_water_bytes()
        peak = mark if mark > self._mark_bytes else self._sampled_bytes
        host = max(0, peak - self._baseline_bytes)
        module = torch.get_device_module(self._runtime.device)
        if self._runtime.is_host or not hasattr(module, "max_memory_allocated"):
            return host, host
        return int(module.max_memory_allocated(self._runtime.device)), host


def _high_water_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0
