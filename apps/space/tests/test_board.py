from __future__ import annotations

import made_up

from layerstream_space.board import Board

STREAMED, NF4 = made_up.case("streamed"), made_up.case("bnb-nf4")


def board_of(*events: object) -> Board:
    board = Board([STREAMED, NF4], STREAMED)
    for now, event in enumerate(events):
        board.take(event, float(now))
    return board


def test_a_lane_goes_from_waiting_to_running_to_done():
    board = Board([STREAMED, NF4], STREAMED)
    assert [lane.status for lane in board.lanes] == ["waiting", "waiting"]
    board.take(made_up.event(STREAMED, "started"), 5.0)
    assert board.running is board.lanes[0]
    assert board.lanes[0].since_s == 5.0
    board.take(made_up.token(STREAMED, 1, "The"), 6.0)
    board.take(made_up.finished(made_up.measurement(STREAMED)), 7.0)
    assert (board.lanes[0].status, board.num_over, board.is_over) == ("ok", 1, False)
    assert board.running is None


def test_a_heartbeat_changes_nothing():
    board = board_of(made_up.event(STREAMED, "started"))
    assert not board.take(made_up.event(STREAMED, "waiting"), 9.0)
    assert board.take(made_up.token(STREAMED, 1, "a"), 9.0)


def test_the_first_difference_shows_while_tokens_still_come():
    reference = made_up.finished(made_up.measurement(STREAMED, ids=(1, 2, 3)))
    board = board_of(reference, made_up.event(NF4, "started"), made_up.token(NF4, 1, "The"))
    assert board.first_difference(board.lanes[1]) is None
    board.take(made_up.token(NF4, 7, " sea"), 1.0)
    assert board.first_difference(board.lanes[1]) == 1
    assert board.margin_at(1) == 0.02


def test_an_answer_that_is_shorter_differs_only_once_both_are_over():
    reference = made_up.finished(made_up.measurement(STREAMED, ids=(1, 2, 3)))
    board = board_of(reference, made_up.event(NF4, "started"), made_up.token(NF4, 1, "The"))
    assert board.first_difference(board.lanes[1]) is None
    board.take(made_up.finished(made_up.measurement(NF4, ids=(1,), texts=("The",))), 1.0)
    assert board.first_difference(board.lanes[1]) == 1


def test_the_reference_itself_never_differs_and_nothing_does_without_one():
    board = board_of(made_up.finished(made_up.measurement(STREAMED)))
    assert board.first_difference(board.lanes[0]) is None
    alone = Board([NF4], None)
    alone.take(made_up.finished(made_up.measurement(NF4)), 0.0)
    assert alone.first_difference(alone.lanes[0]) is None


def test_a_stopped_board_keeps_what_was_measured_and_is_over():
    board = board_of(made_up.finished(made_up.measurement(STREAMED)), made_up.event(NF4, "started"))
    board.stop("why")
    assert [lane.status for lane in board.lanes] == ["ok", "stopped"]
    assert (board.is_over, board.note, len(board.measurements)) == (True, "why", 1)


def test_tokens_of_a_failed_case_stay_and_are_not_compared():
    reference = made_up.finished(made_up.measurement(STREAMED))
    failed = made_up.finished(made_up.measurement(NF4, status="failed", reason="no kernel", ids=(), texts=()))
    board = board_of(reference, made_up.event(NF4, "started"), made_up.token(NF4, 9, "x"), failed)
    assert board.lanes[1].token_texts == ["x"]
    assert board.first_difference(board.lanes[1]) is None
