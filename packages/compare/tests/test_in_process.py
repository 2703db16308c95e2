from __future__ import annotations

import contextvars
import threading

import pytest
from fake_workers import result

from layerstream_compare.runners.in_process import run_in_process

USER = contextvars.ContextVar("USER", default="anonymous")


def succeeding(case, emit):
    emit("phase", phase="load")
    emit("token", index=0, id=1, text=case.prompt)
    emit("result", **result())


def raising(error: BaseException):
    def run_case(case, emit):
        raise error

    return run_case


def test_events_equal_those_of_a_process_and_the_measurement_is_marked_in_process(case):
    events = list(run_in_process(case, run_case=succeeding))
    assert [event.kind for event in events] == ["started", "phase", "token", "finished"]
    assert events[2].data == {"index": 0, "id": 1, "text": "Hello"}
    measurement = events[-1].measurement
    assert (measurement.status, measurement.isolation) == ("ok", "in-process")


@pytest.mark.parametrize(
    ("run_case", "status", "reason"),
    [
        (raising(RuntimeError("no\nkernel")), "failed", "RuntimeError: no kernel"),
        (raising(SystemExit(3)), "failed", "SystemExit: 3"),
        (raising(MemoryError()), "failed", "MemoryError:"),
        (lambda case, emit: None, "failed", "the case ended without a result"),
        (lambda case, emit: emit("unavailable", reason="no GPU"), "unavailable", "no GPU"),
        (
            lambda case, emit: emit("result", nonsense=1),
            "failed",
            "the worker's result does not fit the schema: TypeError",
        ),
    ],
)
def test_every_misbehaving_case_becomes_a_measurement(case, run_case, status, reason):
    *_, last = run_in_process(case, run_case=run_case)
    assert (last.measurement.status, last.measurement.isolation) == (status, "in-process")
    assert last.measurement.reason.startswith(reason)


def test_tokens_arrive_while_the_case_is_running(case):
    may_finish = threading.Event()

    def waits(case, emit):
        emit("token", text="first")
        assert may_finish.wait(10)
        emit("result", **result())

    events = run_in_process(case, run_case=waits)
    assert [next(events).kind for _ in range(2)] == ["started", "token"]
    may_finish.set()
    assert next(events).measurement.status == "ok"


def test_a_silent_case_yields_heartbeats(case):
    may_finish = threading.Event()

    def waits(case, emit):
        assert may_finish.wait(10)
        emit("result", **result())

    events = run_in_process(case, run_case=waits, heartbeat_s=0.01)
    assert [next(events).kind for _ in range(2)] == ["started", "waiting"]
    may_finish.set()
    assert list(events)[-1].measurement.status == "ok"


def test_closing_the_iterator_ends_the_case_at_its_next_event(case):
    ended = []

    def endless(case, emit):
        try:
            while True:
                emit("token", text="x")
        except Exception:  # noqa: BLE001  a case may catch broadly
            ended.append("handled as a failure")
        finally:
            ended.append("ended")

    events = run_in_process(case, run_case=endless)
    assert [next(events).kind for _ in range(2)] == ["started", "token"]
    events.close()
    assert ended == ["ended"]


def test_the_case_runs_in_its_callers_context(case):
    USER.set("alice")
    events = list(run_in_process(case, run_case=lambda case, emit: emit("token", text=USER.get())))
    assert events[1].data["text"] == "alice"
