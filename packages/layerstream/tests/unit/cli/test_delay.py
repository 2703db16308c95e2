"""The line that says why a run took much longer than its plan."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from layerstream.cli.delay import explain_delay
from layerstream.spec.report import StreamReport

PLANNED_S = 0.1
COMPUTING = StreamReport(
    model_name="m",
    dtype="float16",
    device="cpu",
    sweeps=10,
    units=4,
    streamed_units=4,
    bytes_read=0,
    bytes_copied=0,
    read_s=1.0,
    copy_s=0.0,
    wait_s=1.0,
    compute_s=29.0,
    elapsed_s=30.0,
    peak_device_bytes=0,
    peak_host_bytes=0,
    ledger_device_bytes=0,
    budget_device_bytes=0,
)


def test_a_run_about_as_planned_has_no_such_line() -> None:
    assert explain_delay(0.19, PLANNED_S, COMPUTING) == ""
    assert explain_delay(0.0, PLANNED_S, COMPUTING) == ""
    assert explain_delay(3.0, 0.0, COMPUTING) == ""


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (12.2, 0.0, 0.0))
    assert explain_delay(3.0, PLANNED_S, COMPUTING) == (
        "\n  slower      30 times the planned 100 ms per token; most of the time went into computing; "
        "the machine is busy (load average 12 on 2 cores)"
    )


def test_a_slow_disk_is_not_blamed_on_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 0.0, 0.0))
    waiting = replace(COMPUTING, wait_s=29.0, compute_s=1.0)
    line = explain_delay(3.0, PLANNED_S, waiting)
    assert line.endswith("per token; most of the time went into waiting for weights")
