"""A pytest plugin: a line in the results for each test as it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import lines
from .lines import Row


def pytest_runtest_logreport(report: Any) -> None:
    """Append the outcome of a test: its call, or a setup that failed or skipped."""
    if report.when != "call" and report.outcome == "passed":
        return
    has_failed = report.outcome == "failed"
    reason = str(report.longrepr).splitlines()[-1][-300:] if report.longrepr and has_failed else ""
    name = report.nodeid.split("/")[-1]
    row = Row(
        what="tests that need an accelerator" if "gpu" in report.nodeid else "tests of the fake device",
        target="all pass",
        met=None if report.outcome == "skipped" else not has_failed,
        note=f"{name}: {reason or report.outcome}" if report.outcome != "passed" else "",
        tally=True,
        is_promise=True,
    )
    lines.append(
        Path(os.environ["GPU_STEPS_RESULTS"]),
        kind="case",
        step=os.environ["GPU_STEPS_STEP"],
        case=name,
        status=lines.OK,
        reason="",
        seconds=round(report.duration, 3),
        rows=[row],
        figures={"outcome": report.outcome},
    )
