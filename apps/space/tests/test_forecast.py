from __future__ import annotations

import pytest
import sample_values

from layerstream_space.forecast import FIRST_GUESS, Forecast, pace
from layerstream_space.run_state import RunState
from layerstream_space.view.columns import columns_view
from layerstream_space.view.progress import run_bar

STREAMED, NF4 = sample_values.case("streamed"), sample_values.case("bnb-nf4")


def test_before_anything_was_seen_there_is_a_guess_for_every_phase():
    expected = Forecast().expect(STREAMED)
    assert set(expected) == set(FIRST_GUESS)
    assert expected["decode"] == pytest.approx(FIRST_GUESS["decode"] * STREAMED.max_new_tokens)
    assert Forecast().expect(STREAMED.with_changes(quality=False))["quality"] == 0


def test_what_a_case_took_is_expected_of_the_next_one_of_its_kind_only():
    forecast = Forecast()
    forecast.learn(STREAMED, {"starting": 2.0, "import": 0.0, "decode": 4.0}, 8)
    assert forecast.expect(STREAMED.with_changes(max_new_tokens=20))["decode"] == pytest.approx(10.0)
    assert forecast.expect(STREAMED.with_changes(prompt="Another"))["starting"] == 2.0
    drafted = STREAMED.with_changes(draft="int8")
    assert forecast.expect(drafted) == Forecast().expect(drafted)
    assert forecast.expect(NF4) == Forecast().expect(NF4)


def test_slow_phases_make_the_rest_slower_too():
    assert pace(20.0, 5.0) == 4.0
    assert pace(0.1, 0.2) == 1.0


def state_at(*events) -> RunState:
    state = RunState([STREAMED, NF4], STREAMED, lambda case: {"starting": 4.0, "load": 2.0, "decode": 4.0})
    for now, event in events:
        state.apply(event, now)
    return state


def test_estimate_stands_before_the_first_case_has_started():
    assert state_at().remaining_s(0.0) == pytest.approx(20.0)
    assert "about 20 s left in all" in columns_view(state_at(), 0.0)


def test_estimate_shrinks_with_time_and_follows_the_machines_pace():
    started = (0.0, sample_values.event(STREAMED, "started"))
    assert state_at(started).remaining_s(3.0) == pytest.approx(17.0)
    slow = state_at(started, (8.0, sample_values.event(STREAMED, "phase", phase="load")))
    assert slow.remaining_s(8.0) == pytest.approx(2 * 16.0)


def test_running_lane_shows_its_current_step_and_the_run_its_share():
    state = state_at(
        (0.0, sample_values.event(STREAMED, "started")),
        (4.0, sample_values.event(STREAMED, "phase", phase="load")),
    )
    html = columns_view(state, 4.5)
    assert html.count('class="now"') == 1
    assert "<span>weights</span>" in html.partition('class="now"')[2].partition("</i>")[0]
    assert run_bar(state, 4.0).count("--now:0.400") == 1


def test_drawing_changes_once_a_second_while_nothing_happens():
    state = state_at((0.3, sample_values.event(STREAMED, "started")))
    assert columns_view(state, 2.35) == columns_view(state, 3.25)
    assert columns_view(state, 2.35) != columns_view(state, 3.35)
