from __future__ import annotations

import copy

import sample_values

from layerstream_space.run_state import RunState

STREAMED, NF4 = sample_values.case("streamed"), sample_values.case("bnb-nf4")


def state_of(*events: object) -> RunState:
    state = RunState([STREAMED, NF4], STREAMED)
    for now, event in enumerate(events):
        state.apply(event, float(now))
    return state


def test_column_goes_from_waiting_to_running_to_done():
    state = RunState([STREAMED, NF4], STREAMED)
    assert [column.status for column in state.columns] == ["waiting", "waiting"]
    state.apply(sample_values.event(STREAMED, "started"), 5.0)
    assert state.running is state.columns[0]
    assert state.columns[0].since_s == 5.0
    state.apply(sample_values.token(STREAMED, 1, "The"), 6.0)
    state.apply(sample_values.finished(sample_values.measurement(STREAMED)), 7.0)
    assert (state.columns[0].status, state.num_over, state.is_over) == ("ok", 1, False)
    assert state.running is None


def test_heartbeat_changes_nothing():
    state = state_of(sample_values.event(STREAMED, "started"))
    before = copy.deepcopy((state.columns, state.timeline))
    state.apply(sample_values.event(STREAMED, "waiting"), 9.0)
    assert (state.columns, state.timeline) == before
    state.apply(sample_values.token(STREAMED, 1, "a"), 9.0)
    assert state.columns != before[0]


def test_first_difference_is_found_while_tokens_are_still_arriving():
    reference = sample_values.finished(sample_values.measurement(STREAMED, ids=(1, 2, 3)))
    state = state_of(reference, sample_values.event(NF4, "started"), sample_values.token(NF4, 1, "The"))
    assert state.first_difference(state.columns[1]) is None
    state.apply(sample_values.token(NF4, 7, " sea"), 1.0)
    assert state.first_difference(state.columns[1]) == 1
    assert state.margin_at(1) == 0.02


def test_shorter_answer_differs_only_once_both_are_complete():
    reference = sample_values.finished(sample_values.measurement(STREAMED, ids=(1, 2, 3)))
    state = state_of(reference, sample_values.event(NF4, "started"), sample_values.token(NF4, 1, "The"))
    assert state.first_difference(state.columns[1]) is None
    state.apply(sample_values.finished(sample_values.measurement(NF4, ids=(1,), texts=("The",))), 1.0)
    assert state.first_difference(state.columns[1]) == 1


def test_reference_never_differs_and_without_a_reference_nothing_does():
    state = state_of(sample_values.finished(sample_values.measurement(STREAMED)))
    assert state.first_difference(state.columns[0]) is None
    alone = RunState([NF4], None)
    alone.apply(sample_values.finished(sample_values.measurement(NF4)), 0.0)
    assert alone.first_difference(alone.columns[0]) is None


def test_stopped_run_keeps_its_measurements_and_is_over():
    state = state_of(
        sample_values.finished(sample_values.measurement(STREAMED)), sample_values.event(NF4, "started")
    )
    state.stop("reason")
    assert [column.status for column in state.columns] == ["ok", "stopped"]
    assert (state.is_over, state.note, len(state.measurements)) == (True, "reason", 1)


def test_tokens_of_a_failed_case_stay_but_are_not_compared():
    reference = sample_values.finished(sample_values.measurement(STREAMED))
    failed = sample_values.finished(
        sample_values.measurement(NF4, status="failed", reason="no kernel", ids=(), texts=())
    )
    state = state_of(reference, sample_values.event(NF4, "started"), sample_values.token(NF4, 9, "x"), failed)
    assert state.columns[1].token_texts == ["x"]
    assert state.first_difference(state.columns[1]) is None
