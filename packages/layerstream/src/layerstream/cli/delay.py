"""Say why a run took much longer than its plan."""

from __future__ import annotations

import os

from ..spec.report import StreamReport
from ..spec.sizes import format_seconds

_MUCH_LONGER = 2.0
_BUSY = 3.0
"""Load average per core from which the machine counts as busy.

On Linux it includes this program: a computing thread for each core, and a few threads that wait for the disk.
"""


def explain_delay(later_token_s: float, planned_s: float, report: StreamReport) -> str:
    """Return a line for the end of the report, with its line break; empty if the run went about as planned.

    Args:
        later_token_s: seconds that each token after the first took.
        planned_s: what the plan predicted for it.
        report: what the run took.
    """
    if not planned_s or later_token_s < _MUCH_LONGER * planned_s:
        return ""
    part = "computing" if report.compute_s > report.wait_s else "waiting for weights"
    return (
        f"\n  slower      {later_token_s / planned_s:.0f} times the planned "
        f"{format_seconds(planned_s)} per token; most of the time went into {part}{_busy_machine()}"
    )


def _busy_machine() -> str:
    if not hasattr(os, "getloadavg"):  # Windows
        return ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < _BUSY * cores:
        return ""
    return f"; the machine is busy (load average {load:.0f} on {cores} cores)"
