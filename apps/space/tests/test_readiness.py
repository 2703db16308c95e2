"""When there is a spare worker: in the pauses of an open page, and at no other time."""

from __future__ import annotations

import pytest
import sample_values

from layerstream_space.readiness import Readiness

CASE = sample_values.case("streamed")


class FakeSpare:
    """Stands in for `SpareWorker`: counts instead of starting processes."""

    def __init__(self) -> None:
        self.is_warm = False

    def warm_up(self) -> bool:
        self.is_warm = True
        return True

    def close(self) -> None:
        self.is_warm = False

    def run(self, case, *, heartbeat_s):
        self.is_warm = False
        yield sample_values.event(case, "started")
        for phase in ("import", "load", "first-token", "decode", "quality"):
            yield sample_values.event(case, "phase", phase=phase)
        yield sample_values.finished(sample_values.measurement(case))


@pytest.fixture
def spare():
    return FakeSpare()


@pytest.fixture
def readiness(spare):
    return Readiness(spare, heartbeat_s=0.1)


def step_to(events, phase):
    return next(event for event in events if event.data.get("phase") == phase)


def test_spare_is_started_when_a_page_opens_and_ends_when_the_last_one_closes(readiness, spare):
    readiness.page_used("a")
    readiness.page_used("b")
    assert spare.is_warm
    readiness.page_closed("a")
    assert spare.is_warm
    readiness.page_closed("b")
    assert not spare.is_warm


def test_next_spare_starts_only_once_everything_timed_is_over(readiness, spare):
    readiness.page_used("a")
    events = readiness.run_case(CASE)
    step_to(events, "decode")
    assert not spare.is_warm
    readiness.page_used("b")
    assert not spare.is_warm
    step_to(events, "quality")
    assert spare.is_warm


def test_without_an_open_page_no_spare_is_started(readiness, spare):
    assert list(readiness.run_case(CASE))[-1].measurement.status == "ok"
    readiness.run_ended()
    assert not spare.is_warm


def test_after_stop_there_is_none_until_somebody_uses_a_page(readiness, spare):
    readiness.page_used("a")
    events = readiness.run_case(CASE)
    step_to(events, "decode")
    readiness.stopped()
    step_to(events, "quality")
    events.close()
    readiness.run_ended()
    assert not spare.is_warm
    readiness.page_used("a")
    assert spare.is_warm


def test_case_that_is_closed_early_does_not_hold_back_the_next_spare(readiness, spare):
    readiness.page_used("a")
    events = readiness.run_case(CASE)
    step_to(events, "load")
    events.close()
    readiness.run_ended()
    assert spare.is_warm


def test_page_used_while_a_stopped_case_still_ends_gets_its_spare_afterwards(readiness, spare):
    readiness.page_used("a")
    events = readiness.run_case(CASE)
    step_to(events, "decode")
    readiness.stopped()
    readiness.page_used("a")
    assert not spare.is_warm
    events.close()
    assert spare.is_warm


def test_what_a_page_asked_before_it_was_closed_opens_it_no_more(readiness, spare, monkeypatch):
    readiness.page_used("a")
    readiness.page_closed("a")
    readiness.page_used("a")
    assert not spare.is_warm
    monkeypatch.setattr("layerstream_space.readiness._LATE_S", 0.0)
    readiness.page_used("a")  # its connection was lost, and it is back
    assert spare.is_warm


def test_closed_readiness_starts_no_spare(readiness, spare):
    readiness.page_used("a")
    readiness.close()
    readiness.run_ended()
    assert not spare.is_warm
