"""The scheduler's decisions as tables: who runs next after each event. No thread, no model, no weights."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest

from layerstream.streaming.scheduler import Scheduler

CALLER = None
DONE = "done"
Turn = tuple[int | None, int | str]
"""Who must run next, and what it does then: a task requests a unit (its index) or is DONE; the caller takes
the result of the task with this number."""


def play(scheduler: Scheduler, turns: Sequence[Turn]) -> None:
    """Check that the scheduler gives these turns. Each task leaves its unit before it does something else."""
    requested: dict[int, int] = {}
    for step, (expected, action) in enumerate(turns):
        task = scheduler.next_task()
        assert task == expected, f"turn {step}"
        if task is None:
            assert scheduler.take_finished() == action
            continue
        if task in requested:
            scheduler.enter(task, requested[task])
            assert scheduler.leave(task, requested.pop(task))
        if isinstance(action, int):
            requested[task] = action
            scheduler.request(task, action)
        else:
            scheduler.finish(task)


TABLES: dict[str, tuple[list[float], float | None, list[Turn]]] = {
    "no tasks: the caller's turn, with nothing to take": ([], None, []),
    "tasks without a limit are all admitted before the first visit": (
        [1, 1, 1],
        None,
        [(0, 0), (1, 0), (2, 0), (0, DONE), (CALLER, 0), (1, DONE), (CALLER, 1), (2, DONE), (CALLER, 2)],
    ),
    "a task that does not fit waits until one has finished": (
        [1, 1, 1],
        2,
        [(0, 0), (1, 0), (0, 1), (1, DONE), (CALLER, 1), (2, 1), (0, DONE), (CALLER, 0), (2, DONE)],
    ),
    "tasks are admitted in order: a light one does not overtake a heavy one": (
        [1, 3, 1],
        3,
        [(0, 0), (0, DONE), (CALLER, 0), (1, 0), (1, DONE), (CALLER, 1), (2, DONE), (CALLER, 2)],
    ),
    "several that fit together are admitted together": (
        [2, 1, 1, 1],
        2,
        [(0, DONE), (CALLER, 0), (1, 0), (2, 0), (1, DONE), (CALLER, 1), (3, 0), (2, DONE), (CALLER, 2)],
    ),
    "a task heavier than the capacity runs alone": (
        [1, 9, 1],
        2,
        [
            (0, 0),
            (0, DONE),
            (CALLER, 0),
            (1, 0),
            (1, 1),
            (1, DONE),
            (CALLER, 1),
            (2, 0),
            (2, DONE),
            (CALLER, 2),
        ],
    ),
    "a visit serves its tasks in task order": (
        [1, 1, 1],
        None,
        [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)],
    ),
    "a task that comes late joins the present visit, in task order": (
        [1, 1, 1],
        2,
        # while unit 0 is visited, task 0 finishes; task 2 is admitted and queues behind task 1
        [(0, 0), (1, 0), (0, DONE), (CALLER, 0), (2, 0), (1, 1), (2, 1), (1, DONE)],
    ),
    "after the last unit the visits start over at the first": (
        [1, 1],
        None,
        [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (1, 0), (0, 1), (1, 1)],
    ),
    "a unit requested again at once is served in another visit, after the others": (
        [1, 1],
        None,
        [(0, 0), (1, 0), (0, 0), (1, 0), (0, 0), (1, DONE), (CALLER, 1), (0, DONE), (CALLER, 0)],
    ),
    "a task that skips units waits for the others where their ways meet": (
        [1, 1],
        None,
        [(0, 0), (1, 0), (0, 1), (1, 3), (0, 2), (0, 3), (0, 0), (1, DONE), (CALLER, 1), (0, DONE)],
    ),
    "opposite ways: the next unit in cyclic order is visited, whoever requests it": (
        [1, 1],
        None,
        [(0, 0), (1, 2), (0, 1), (0, 2), (0, 0), (1, 1), (0, 1), (0, DONE), (CALLER, 0), (1, 0), (1, DONE)],
    ),
    "a task that repeats one unit does not hold up one that needs another": (
        [1, 1],
        None,
        [(0, 3), (1, 0), (1, 1), (1, 3), (0, 3), (1, 0), (1, 1), (1, 3), (0, 3), (1, DONE)],
    ),
    "a task that finishes in the middle leaves the order of the others": (
        [1, 1, 1],
        None,
        [(0, 0), (1, 0), (2, 0), (0, 1), (1, DONE), (CALLER, 1), (2, 1), (0, 2), (2, 2), (0, DONE)],
    ),
    "tasks that request no unit run one after another, each result taken at once": (
        [1, 1],
        None,
        [(0, DONE), (CALLER, 0), (1, DONE), (CALLER, 1)],
    ),
}


@pytest.mark.parametrize(("weights", "capacity", "turns"), TABLES.values(), ids=TABLES)
def test_turns_follow_the_table(weights: list[float], capacity: float | None, turns: list[Turn]) -> None:
    play(Scheduler(weights, capacity=capacity), turns)


def test_a_schedule_is_done_when_every_finished_task_was_taken() -> None:
    scheduler = Scheduler([1])
    assert not scheduler.is_done
    assert scheduler.next_task() == 0
    scheduler.finish(0)
    assert not scheduler.is_done
    assert scheduler.take_finished() == 0
    assert scheduler.is_done
    assert (scheduler.take_finished(), scheduler.next_task()) == (None, None)
    assert Scheduler([]).is_done


def test_each_visit_has_a_number_of_its_own() -> None:
    scheduler, visits = Scheduler([1, 1]), []
    for _ in range(8):
        task = scheduler.next_task()
        assert task is not None
        visits.append(scheduler.visit)
        scheduler.request(task, 0)
    assert visits == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_unit_is_releasable_when_its_last_task_has_left_it() -> None:
    scheduler = Scheduler([1, 1])
    for task in (0, 1):
        assert scheduler.next_task() == task
        scheduler.request(task, 0)
    assert scheduler.next_task() == 0
    scheduler.enter(0, 0)
    assert scheduler.releasable([0]) == []  # task 0 is inside
    assert scheduler.leave(0, 0)
    assert scheduler.releasable([0]) == []  # task 1 is about to enter
    assert scheduler.releasable([0, 5]) == [5]
    scheduler.request(0, 1)
    assert scheduler.next_task() == 1
    scheduler.enter(1, 0)
    assert scheduler.leave(1, 0)
    assert scheduler.releasable([0]) == [0]


def test_a_unit_around_another_is_kept_until_its_own_tasks_leave() -> None:
    scheduler = Scheduler([1])
    assert scheduler.next_task() == 0
    for unit in (0, 1):
        scheduler.request(0, unit)
        assert scheduler.next_task() == 0
        scheduler.enter(0, unit)
    assert scheduler.leave(0, 1)
    assert scheduler.releasable([0, 1]) == [1]


def test_leaving_a_unit_that_was_not_entered_changes_nothing() -> None:
    scheduler = Scheduler([1, 1])
    assert scheduler.next_task() == 0
    assert not scheduler.leave(0, 0)
    scheduler.enter(1, 0)
    assert not scheduler.leave(0, 0)
    assert scheduler.releasable([0]) == []


def test_a_task_that_finishes_inside_a_unit_makes_it_releasable() -> None:
    scheduler = Scheduler([1])
    assert scheduler.next_task() == 0
    scheduler.enter(0, 0)
    scheduler.finish(0)
    scheduler.finish(0)  # safe to call twice
    assert scheduler.releasable([0]) == [0]
    assert (scheduler.running, scheduler.take_finished(), scheduler.take_finished()) == ([], 0, None)


def test_after_stop_running_tasks_get_a_last_turn_and_no_other_is_admitted() -> None:
    scheduler = Scheduler([1, 1, 1], capacity=2)
    play(scheduler, [(0, 0), (1, 0), (0, 1)])
    scheduler.stop()
    assert scheduler.next_task() == 0
    assert scheduler.next_task() == 0  # until it has finished
    scheduler.finish(0)
    assert scheduler.next_task() == 1  # not the caller: results are not reported any more
    scheduler.finish(1)
    assert scheduler.next_task() is None
    assert scheduler.releasable([0, 1]) == [0, 1]


def test_stop_before_the_first_turn_admits_no_task() -> None:
    scheduler = Scheduler([1, 1])
    scheduler.stop()
    assert scheduler.next_task() is None
    assert scheduler.is_done


def test_a_schedule_is_plain_data_that_can_be_copied_in_the_middle() -> None:
    """A thread, a queue, an event or a lock could not be pickled; nor could a local function."""
    scheduler = Scheduler([1, 1, 1], capacity=2)
    play(scheduler, [(0, 0), (1, 0), (0, 1)])
    rest: list[Turn] = [(1, 1), (0, DONE), (CALLER, 0), (2, 1), (1, DONE), (CALLER, 1), (2, DONE)]
    for copy in (pickle.loads(pickle.dumps(scheduler)), scheduler):
        assert copy.next_task() == 1
        copy.request(1, 1)
        play(copy, rest[1:])


def test_a_task_waits_for_its_parts_which_are_admitted_at_once_and_come_last() -> None:
    scheduler = Scheduler([1, 1, 1], capacity=2)
    assert scheduler.next_task() == 0
    assert list(scheduler.suspend(0, 2)) == [3, 4]
    assert scheduler.next_task() == 3
    scheduler.request(3, 0)
    assert scheduler.next_task() == 4
    scheduler.request(4, 0)
    assert scheduler.next_task() == 1
    scheduler.request(1, 0)
    for task in (1, 3, 4):  # one visit serves all, the parts last
        assert scheduler.next_task() == task
        scheduler.enter(task, 0)
        scheduler.leave(task, 0)
        if task == 1:
            scheduler.request(1, 1)
        else:
            scheduler.finish(task)
    assert scheduler.next_task() == 0  # goes on when its parts have ended
    scheduler.finish(0)
    assert scheduler.next_task() is None
    assert scheduler.take_finished() == 0
    assert scheduler.take_finished() is None  # parts are nobody's results
    assert scheduler.next_task() == 2


def test_after_a_stop_no_part_is_admitted() -> None:
    scheduler = Scheduler([1])
    assert scheduler.next_task() == 0
    scheduler.suspend(0, 2)
    assert scheduler.next_task() == 1
    scheduler.stop()
    assert scheduler.next_task() == 0
    scheduler.finish(0)
    assert scheduler.next_task() == 1
    scheduler.finish(1)
    assert scheduler.next_task() is None
    assert scheduler.take_finished() == 0
    assert scheduler.is_done
