"""Measure how busy other programs keep the machine during a measurement. Runs in the worker.

The load average cannot show this: it includes the measured work itself and the case before. Here it is the
CPUs' busy time minus this process's own; time that a hypervisor gave to other guests counts as background
load.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)
"""Fields of the line `cpu`, see proc(5): user, nice, system, irq, softirq, steal."""


class BackgroundLoadMeter:
    """Measures from its creation on."""

    def __init__(self) -> None:
        """Start measuring."""
        self._start_s = time.perf_counter()
        self._start_busy_s = busy_s()
        self._start_own_s = time.process_time()

    def cores(self) -> float:
        """Return the average number of cores that other programs kept busy; 0 if the kernel does not say."""
        elapsed_s = time.perf_counter() - self._start_s
        background_s = busy_s() - self._start_busy_s - (time.process_time() - self._start_own_s)
        return max(0.0, background_s / elapsed_s) if elapsed_s else 0.0


def busy_s() -> float:
    """Return the busy seconds of all CPUs together since the machine started; 0 if unknown."""
    try:
        first = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError):
        return 0.0
    ticks = [int(field) for field in first[1:]]
    return sum(ticks[index] for index in _BUSY if index < len(ticks)) / os.sysconf("SC_CLK_TCK")
