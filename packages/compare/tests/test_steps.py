from __future__ import annotations

import pytest

from layerstream_compare.case import Case
from layerstream_compare.events import Event
from layerstream_compare.measurement import Measurement
from layerstream_compare.steps import (
    STEP_SECONDS,
    Spent,
    StepClock,
    expected_seconds,
    seconds_left,
    spent_by,
    steps_of,
)

EACH = {"start": 2.0, "load": 3.0, "warm-up": 1.0, "prompt": 4.0, "answer": 20.0, "agreement": 30.0}


def case_of(variant: str = "resident", **changes) -> Case:
    return Case(**({"model": "m", "variant": variant, "prompt": "Hi", "max_new_tokens": 11} | changes))


def spent(variant: str = "resident", *, factor: float = 1.0, prompt_tokens: int = 10, **changes) -> Spent:
    seconds = {step: factor * value for step, value in EACH.items()}
    return Spent(case=case_of(variant, **changes), prompt_tokens=prompt_tokens, seconds=seconds)


def test_a_case_has_a_step_for_everything_that_it_does():
    assert steps_of(case_of()) == tuple(EACH)
    assert steps_of(case_of(quality=False, warmup_tokens=0)) == ("start", "load", "prompt", "answer")


def test_the_clock_adds_up_each_step_from_the_events():
    clock, case = StepClock(), case_of()
    phases = ("import", "load", "warm-up", "first-token", "decode", "quality")
    events = [Event(case=case, kind="started", data={})]
    events += [Event(case=case, kind="phase", data={"phase": phase}) for phase in phases]
    events.insert(6, Event(case=case, kind="token", data={"text": "a"}))
    events.append(Event(case=case, kind="finished", data={}))
    for now_s, event in enumerate(events):
        clock.feed(event, float(now_s))
    assert clock.seconds == {
        "start": 2.0,
        "load": 1.0,
        "warm-up": 1.0,
        "prompt": 1.0,
        "answer": 2.0,
        "agreement": 1.0,
    }
    measured = clock.added_to(Measurement(case=case, status="ok"))
    assert spent_by(measured).seconds == clock.seconds


def test_a_case_that_never_started_or_failed_tells_nothing_of_the_others():
    unstarted = StepClock().added_to(Measurement(case=case_of(), status="failed"))
    assert unstarted.facts == {}
    failed = Measurement(case=case_of(), status="failed", facts={STEP_SECONDS: EACH})
    assert spent_by(failed) is None
    assert spent_by(Measurement(case=case_of(), status="ok")) is None


def test_the_time_left_is_unknown_until_every_step_was_measured_once():
    assert seconds_left([case_of()], []) is None
    assert seconds_left([], [], running=case_of(), step="load", step_seconds=1.0) is None
    assert seconds_left([case_of()], [spent()]) == sum(EACH.values())
    assert seconds_left([], []) == 0
    only_fast = Spent(case=case_of(quality=False), prompt_tokens=10, seconds={"start": 1.0})
    assert seconds_left([case_of()], [only_fast]) is None


def test_the_same_variant_is_asked_first_and_else_all_are():
    known = [
        spent("streamed", factor=10.0),
        spent("resident"),
        spent("resident", attention="eager", factor=3.0),
    ]
    assert expected_seconds(case_of("streamed"), "load", known) == 30.0
    assert expected_seconds(case_of("resident"), "load", known) == 3.0
    assert expected_seconds(case_of("resident", attention="sdpa"), "load", known) == pytest.approx(6.0)
    assert expected_seconds(case_of("bnb-nf4"), "load", known) == pytest.approx((30 + 3 + 9) / 3)


def test_reading_the_prompt_takes_longer_in_proportion_to_its_length():
    longer = case_of(prompt_tokens=1000)
    assert expected_seconds(longer, "prompt", [spent(prompt_tokens=500)]) == 8.0
    assert expected_seconds(longer, "load", [spent(prompt_tokens=500)]) == 3.0


def test_the_running_case_counts_with_what_is_left_of_its_step():
    known, running = [spent()], case_of("bnb-nf4")
    left = seconds_left([], known, running=running, step="load", step_seconds=1.0)
    assert left == sum(EACH.values()) - EACH["start"] - 1.0
    # it is slower than what was measured: what remains is not negative
    assert seconds_left([], known, running=running, step="agreement", step_seconds=100.0) == 0


def test_the_rest_of_an_answer_is_estimated_from_its_own_tokens():
    left = seconds_left([], [spent()], running=case_of(), step="answer", step_seconds=10.0, tokens=6)
    assert left == 10.0 / 5 * 5 + EACH["agreement"]
