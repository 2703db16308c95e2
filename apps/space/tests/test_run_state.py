from __future__ import annotations

import sample_values

from layerstream_space.run_state import RunState

STREAMED, NF4 = sample_values.case("streamed"), sample_values.case("bnb-nf4")


def state_of(*events: object) -> RunState:
    state = RunState([STREAMED, NF4], STREAMED)
    for now, event in enumerate(events):
        state.take(event, float(now))
    return state


def test_a_lane_goes_from_waiting_to_running_to_done():
    state = RunState([STREAMED, NF4], STREAMED)
    assert [column.status for column in state.columns] == ["waiting", "waiting"]
    state.take(sample_values.event(STREAMED, "started"), 5.0)
    assert state.running is state.columns[0]
    assert state.columns[0].since_s == 5.0
    state.take(sample_values.token(STREAMED, 1, "The"), 6.0)
    state.take(sample_values.finished(sample_values.measurement(STREAMED)), 7.0)
    assert (state.columns[0].status, state.num_over, state.is_over) == ("ok", 1, False)
    assert state.running is None


def test_a_heartbeat_changes_nothing():
    state = state_of(sample_values.event(STREAMED, "started"))
    assert not state.take(sample_values.event(STREAMED, "waiting"), 9.0)
    assert state.take(sample_values.token(STREAMED, 1, "a"), 9.0)


def test_the_first_difference_shows_while_tokens_still_come():
    reference = sample_values.finished(sample_values.measurement(STREAMED, ids=(1, 2, 3)))
    state = state_of(reference, sample_values.event(NF4, "started"), sample_values.token(NF4, 1, "The"))
    assert state.first_difference(state.columns[1]) is None
    state.take(sample_values.token(NF4, 7, " sea"), 1.0)
    assert state.first_difference(state.columns[1]) == 1
    assert state.margin_at(1) == 0.02


def test_an_answer_that_is_shorter_differs_only_once_both_are_over():
    reference = sample_values.finished(sample_values.measurement(STREAMED, ids=(1, 2, 3)))
    state = state_of(reference, sample_values.event(NF4, "started"), sample_values.token(NF4, 1, "The"))
    assert state.first_difference(state.columns[1]) is None
    state.take(sample_values.finished(sample_values.measurement(NF4, ids=(1,), texts=("The",))), 1.0)
    assert state.first_difference(state.columns[1]) == 1


def test_the_reference_itself_never_differs_and_nothing_does_without_one():
    state = state_of(sample_values.finished(sample_values.measurement(STREAMED)))
    assert state.first_difference(state.columns[0]) is None
    alone = RunState([NF4], None)
    alone.take(sample_values.finished(sample_values.measurement(NF4)), 0.0)
    assert alone.first_difference(alone.columns[0]) is None


def test_a_stopped_board_keeps_what_was_measured_and_is_over():
    state = state_of(
        sample_values.finished(sample_values.measurement(STREAMED)), sample_values.event(NF4, "started")
    )
    state.stop("why")
    assert [column.status for column in state.columns] == ["ok", "stopped"]
    assert (state.is_over, state.note, len(state.measurements)) == (True, "why", 1)


def test_tokens_of_a_failed_case_stay_and_are_not_compared():
    reference = sample_values.finished(sample_values.measurement(STREAMED))
    failed = sample_values.finished(
        sample_values.measurement(NF4, status="failed", reason="no kernel", ids=(), texts=())
    )
    state = state_of(reference, sample_values.event(NF4, "started"), sample_values.token(NF4, 9, "x"), failed)
    assert state.columns[1].token_texts == ["x"]
    assert state.first_difference(state.columns[1]) is None
