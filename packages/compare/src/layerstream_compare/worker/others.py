"""How busy other programs keep the machine while something is measured.

Worker's side. The load average cannot tell: it counts the measured work itself, and remembers the case before. Here the processors'
busy time is taken, and this process' own share of it left out; time that a hypervisor gave to others counts as theirs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)
"""Of the numbers behind `cpu`, as proc(5) has them: user, nice, system, irq, softirq, steal."""


class OthersMeter:
    """Measures from its making on."""

    def __init__(self) -> None:
        """Start."""
        self._start_s, self._start_busy_s, self._start_own_s = (
            time.perf_counter(),
            busy_s(),
            time.process_time(),
        )

    def cores(self) -> float:
        """Return how many cores others have kept busy on average; 0 where the kernel does not tell."""
        elapsed_s = time.perf_counter() - self._start_s
        others_s = busy_s() - self._start_busy_s - (time.process_time() - self._start_own_s)
        return max(0.0, others_s / elapsed_s) if elapsed_s else 0.0


def busy_s() -> float:
    """Return the seconds that all processors together have been busy since the machine started; 0 where that is unknown."""
    try:
        first = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError):
        return 0.0
    ticks = [int(each) for each in first[1:]]
    return sum(ticks[index] for index in _BUSY if index < len(ticks)) / os.sysconf("SC_CLK_TCK")
