from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from fake_workers import SUCCEEDS, is_running, wait_until_gone, worker

from layerstream_compare.runners import spare as spare_module
from layerstream_compare.runners.isolate import run_isolated
from layerstream_compare.runners.spare import SpareWorker

WAITS = """
if "--go-fd" in sys.argv:
    if not os.read(int(sys.argv[sys.argv.index("--go-fd") + 1]), 1): sys.exit(0)
"""
"""What a worker does before it reads its case if it is a spare."""


def waiting_worker(body: str) -> tuple[str, ...]:
    *python, program = worker(body)
    head, marker, rest = program.partition("case = json.loads")
    return (*python, head + WAITS + marker + rest)


@pytest.fixture
def spare():
    made = SpareWorker(worker_command=waiting_worker(SUCCEEDS), least_free_bytes=0)
    yield made
    made.close()


def shape(events) -> list:
    return [(event.kind, event.data) for event in events if event.kind != "waiting"]


def test_case_gets_the_same_events_warm_and_cold(case, spare):
    assert spare.warm_up()
    warm = list(spare.run(case))
    cold = list(spare.run(case))
    assert shape(warm) == shape(cold) == shape(run_isolated(case, worker_command=worker(SUCCEEDS)))
    assert warm[-1].measurement == cold[-1].measurement
    assert warm[-1].measurement.status == "ok"


def test_real_worker_gives_the_same_answer_warm_and_cold(tiny_model, case):
    made = SpareWorker(least_free_bytes=0)
    small = case.with_changes(model=str(tiny_model), max_new_tokens=3, quality=False, time_limit_s=300)
    try:
        assert made.warm_up()
        pid = made.pid
        warm, cold = list(made.run(small)), list(made.run(small))
    finally:
        made.close()
    assert warm[-1].measurement.status == "ok", warm[-1].measurement.reason
    assert shape(warm) == shape(cold)
    assert warm[-1].measurement.token_ids == cold[-1].measurement.token_ids
    assert wait_until_gone(pid)


def test_case_runs_in_the_spare_and_the_next_one_in_another_process(case):
    body = 'emit("result", **{**RESULT, "text": str(os.getpid())})'
    made = SpareWorker(worker_command=waiting_worker(body), least_free_bytes=0)
    made.warm_up()
    pid = made.pid
    (*_, first), (*_, second) = made.run(case), made.run(case)
    assert first.measurement.text == str(pid)
    assert second.measurement.text != str(pid)
    assert made.pid is None


def test_there_is_never_more_than_one_spare(spare):
    spare.warm_up()
    pid = spare.pid
    assert spare.warm_up()
    assert spare.pid == pid


def test_spare_ends_with_close(spare):
    spare.warm_up()
    pid = spare.pid
    spare.close()
    assert spare.pid is None
    assert not is_running(pid)


def test_spare_ends_after_its_idle_time():
    made = SpareWorker(worker_command=waiting_worker(SUCCEEDS), idle_limit_s=0.05, least_free_bytes=0)
    made.warm_up()
    pid = made.pid
    assert wait_until_gone(pid)
    while made.pid is not None:
        time.sleep(0.01)


def test_spare_ends_with_the_process_that_keeps_it():
    program = textwrap.dedent("""
        from layerstream_compare import SpareWorker
        spare = SpareWorker(least_free_bytes=0)
        spare.warm_up()
        print(spare.pid, flush=True)
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert wait_until_gone(int(output.stdout))


def test_spare_that_died_is_replaced(case, spare):
    spare.warm_up()
    dead = spare.pid
    os.kill(dead, signal.SIGKILL)
    assert wait_until_gone(dead)
    assert spare.warm_up()
    assert spare.pid not in (None, dead)
    os.kill(spare.pid, signal.SIGKILL)
    assert wait_until_gone(spare.pid)
    *_, last = spare.run(case)
    assert last.measurement.status == "ok"


def test_case_with_threads_of_its_own_gets_a_new_process(case):
    body = 'emit("result", **{**RESULT, "text": str(os.environ.get("OMP_NUM_THREADS"))})'
    made = SpareWorker(worker_command=waiting_worker(body), least_free_bytes=0)
    made.warm_up()
    pid = made.pid
    *_, last = made.run(case.with_changes(threads=3))
    assert last.measurement.text == "3"
    assert not is_running(pid)


def test_closing_a_warm_case_kills_its_worker(case):
    body = 'emit("phase", phase=str(os.getpid())); time.sleep(60)'
    made = SpareWorker(worker_command=waiting_worker(body), least_free_bytes=0)
    made.warm_up()
    pid = made.pid
    events = made.run(case, heartbeat_s=0.01)
    assert next(event for event in events if event.kind == "phase").data == {"phase": str(pid)}
    events.close()
    assert not is_running(pid)


def test_no_spare_is_started_when_memory_is_short(monkeypatch):
    monkeypatch.setattr(spare_module, "free_bytes", lambda: 1024**3)
    made = SpareWorker(worker_command=waiting_worker(SUCCEEDS))
    assert not made.warm_up()
    assert made.pid is None


def test_a_command_that_cannot_start_gives_no_spare_and_a_failed_measurement(case, tmp_path):
    made = SpareWorker(worker_command=(str(tmp_path / "missing"),), least_free_bytes=0)
    assert not made.warm_up()
    *_, last = made.run(case)
    assert last.measurement.status == "failed"
    assert "cannot be started" in last.measurement.reason
