"""The sweep group alone: tasks over numbered units, no model and no weights."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from kit.fake_units import FakeUnits, values

from layerstream.streaming.scheduler import Task, TaskAbandonedError, TaskResult
from layerstream.streaming.sweep_group import SweepGroup


def test_only_one_thread_runs_at_a_time() -> None:
    units, running, most = FakeUnits(), 0, 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.0005)  # any other thread that is able to run does so now
        running -= 1

    def task() -> None:
        for unit in (0, 1, 2) * 3:
            work()
            units.visit("task", unit, work)

    units.group.run([task] * 5, on_result=lambda _: work())
    assert most == 1


def test_a_visit_serves_tasks_in_order_of_admission() -> None:
    units = FakeUnits()
    assert values(units.group.run([units.walker(name, (0, 1, 0, 1)) for name in "abc"])) == ["a", "b", "c"]
    assert units.passages() == [(unit, name) for unit in (0, 1, 0, 1) for name in "abc"]


def test_a_unit_is_acquired_once_per_visit_however_many_tasks_share_it() -> None:
    units = FakeUnits()
    units.group.run([units.walker(name, range(4)) for name in range(10)])
    assert len(units.log) == 4 * 12
    for unit in range(4):
        part = units.log[unit * 12 : unit * 12 + 12]
        assert part == [("acquire", unit), *[(unit, name) for name in range(10)], ("release", unit)]


def test_a_unit_is_released_as_soon_as_its_last_task_leaves_it() -> None:
    units, seen = FakeUnits(), []

    def task() -> None:
        units.visit("task", 0)
        seen.append(set(units.in_place))

    units.group.run([task, task])
    assert seen == [{0}, set()]


def test_the_longest_task_alone_sets_the_number_of_visits() -> None:
    units = FakeUnits()
    units.group.run([units.walker(length, tuple(range(5)) * length) for length in (2, 7, 1, 4)])
    assert units.visits() == list(range(5)) * 7


def test_tasks_with_different_ways_through_the_units_all_finish() -> None:
    """Skipped units, another order, units visited twice, one unit again and again: every task is served."""
    ways = [(0, 1, 2, 3) * 3, (0, 3) * 5, (2, 1, 0), (1, 1, 1, 1), (0, 1, 0, 2) * 2, (3,) * 20, ()]
    units = FakeUnits()
    assert values(units.group.run([units.walker(number, way) for number, way in enumerate(ways)])) == list(
        range(len(ways))
    )
    for number, way in enumerate(ways):
        assert [unit for unit, name in units.passages() if name == number] == list(way)
    assert len(units.visits()) <= 20 + sum(map(len, ways)) // 2


def test_a_task_that_skips_units_waits_for_the_others_where_their_ways_meet() -> None:
    units = FakeUnits()
    units.group.run([units.walker("whole", (0, 1, 2, 3)), units.walker("early exit", (0, 3))])
    assert units.visits() == [0, 1, 2, 3]
    assert [name for unit, name in units.passages() if unit == 3] == ["whole", "early exit"]


def test_units_within_units_are_shared_too() -> None:
    units = FakeUnits()

    def task(name: str) -> Callable[[], None]:
        return lambda: units.visit(name, 0, lambda: units.visit(name, 1))

    units.group.run([task("a"), task("b")])
    assert units.log == [
        ("acquire", 0),
        (0, "a"),
        (0, "b"),
        ("acquire", 1),
        (1, "a"),
        (1, "b"),
        ("release", 1),
        ("release", 0),
    ]


def test_a_waiting_task_is_admitted_when_capacity_is_free_and_starts_at_its_first_unit() -> None:
    units = FakeUnits()
    tasks = [
        Task(call=units.walker(name, tuple(range(3)) * count), weight=1)
        for name, count in (("a", 3), ("b", 1), ("c", 2))
    ]
    units.group.run(tasks, capacity=2)
    assert units.visits() == [0, 1, 2] * 3  # c takes the place of b in the very next sweep
    assert [name for unit, name in units.passages() if unit == 0] == ["a", "b", "a", "c", "a", "c"]


def test_a_task_heavier_than_the_capacity_runs_alone() -> None:
    units = FakeUnits()
    tasks = [
        Task(call=units.walker(name, (0, 1)), weight=weight)
        for name, weight in (("a", 1.0), ("b", 9.0), ("c", 1.0))
    ]
    units.group.run(tasks, capacity=2)
    assert units.passages() == [(unit, name) for name in "abc" for unit in (0, 1)]


def test_tasks_that_enter_no_unit_run_one_after_another() -> None:
    group = SweepGroup()
    assert values(group.run([lambda: 1, lambda: 2])) == [1, 2]
    assert group.run([]) == []


class SharedCounter:
    """A global that every task writes to; each task needs its own value."""

    def __init__(self) -> None:
        self.present = 0

    def capture(self) -> int:
        return self.present

    def restore(self, state: int) -> None:
        self.present = state


def test_each_task_has_its_own_task_state() -> None:
    counter = SharedCounter()
    units = FakeUnits(SweepGroup(counter))
    counter.present = 100

    def task(step: int) -> Callable[[], int]:
        def count() -> int:
            for unit in range(4):
                counter.present += step
                units.visit(step, unit)
            return counter.present

        return count

    seen = []

    def on_result(_: TaskResult) -> None:
        counter.present += 1000
        seen.append(counter.present)

    assert values(units.group.run([task(1), task(2), task(3)], on_result=on_result)) == [104, 108, 112]
    assert seen == [1100, 2100, 3100]
    assert counter.present == 3100


def test_results_are_reported_as_they_come_and_returned_in_order() -> None:
    units, reported = FakeUnits(), []
    results = units.group.run(
        [units.walker(3, (0,) * 3), units.walker(1, (0,)), units.walker(2, (0,) * 2)],
        on_result=reported.append,
    )
    assert [result.value for result in reported] == [1, 2, 3]
    assert [result.number for result in results] == [0, 1, 2]


def test_sweeps_are_counted_once_for_all_that_share_them() -> None:
    units = FakeUnits()

    def task(forwards: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(forwards):
                units.group.begin_forward()
                for unit in (0, 1, 0):  # a unit visited twice does not start another sweep
                    units.visit("task", unit)
                units.group.end_forward()

        return run

    units.group.run([task(3), task(5), task(1)])
    assert units.group.sweeps == 5


def test_parts_of_a_task_share_the_visits_of_other_tasks() -> None:
    units = FakeUnits()

    def speculate() -> list[object]:
        units.visit("whole", 0)
        return units.group.run_together([units.walker(name, (0, 1, 2)) for name in "pq"])

    results = units.group.run([speculate, units.walker("other", (0, 1, 2))])
    assert values(results) == [["p", "q"], "other"]
    assert units.visits() == [0, 1, 2]
    shared = [(unit, name) for unit in (0, 1, 2) for name in ("other", "p", "q")]
    assert units.passages() == [(0, "whole"), *shared]


def test_calls_run_together_outside_of_a_task_too() -> None:
    units = FakeUnits()
    assert units.group.run_together([units.walker(name, (0, 1)) for name in "ab"]) == ["a", "b"]
    assert units.visits() == [0, 1]
    assert units.group.run_together([]) == []


def test_parts_start_with_the_state_of_their_task_which_is_the_same_afterwards() -> None:
    state = CountedState()
    group = SweepGroup(state)

    def part() -> int:
        state.value += 1
        return state.value

    def task() -> tuple[list[int], int]:
        state.value += 10
        return group.run_together([part, part]), state.value

    assert values(group.run([task])) == [([11, 11], 10)]


class CountedState:
    """A task state that is one number."""

    def __init__(self) -> None:
        self.value = 0

    def capture(self) -> int:
        return self.value

    def restore(self, state: int) -> None:
        self.value = state


def test_a_late_task_joins_at_the_next_first_unit_and_the_run_ends_with_the_last_one() -> None:
    units, late = FakeUnits(), deque[Task]()
    early = units.walker("early", (0, 1, 2) * 3)

    def first() -> str:
        units.visit("first", 0)
        units.visit("first", 1)
        late.append(Task(call=units.walker("late", (0, 1, 2) * 2)))
        return early()

    heard: list[TaskResult] = []
    results = units.group.run([first], on_result=heard.append, arrivals=lambda: taken(late))
    assert values(results) == ["early"]
    assert values(heard) == ["late", "early"]
    # it comes in the middle of a sweep, waits for the next one, and shares it
    assert units.visits() == [0, 1, *(0, 1, 2) * 3]
    assert [unit for unit, name in units.passages() if name == "late"] == [0, 1, 2] * 2


def test_a_run_may_begin_with_late_tasks_alone() -> None:
    units = FakeUnits()
    late = deque([Task(call=units.walker("late", (0, 1)))])
    heard: list[TaskResult] = []
    assert units.group.run([], on_result=heard.append, arrivals=lambda: taken(late)) == []
    assert values(heard) == ["late"]


def test_a_task_that_comes_while_the_last_result_is_taken_still_runs() -> None:
    units, late = FakeUnits(), deque[Task]()
    heard: list[str] = []

    def on_result(result: TaskResult) -> None:
        heard.append(result.value)
        if len(heard) < 3:
            late.append(Task(call=units.walker(f"late {len(heard)}", (0, 1))))

    units.group.run([units.walker("first", (0,))], on_result=on_result, arrivals=lambda: taken(late))
    assert heard == ["first", "late 1", "late 2"]


def test_a_cancelled_task_leaves_at_the_next_unit_and_the_others_go_on() -> None:
    units, cancelled = FakeUnits(), False

    def cancel() -> None:
        nonlocal cancelled
        cancelled = True

    def cancels() -> str:
        units.visit("cancels", 0)
        units.visit("cancels", 1, cancel)
        units.visit("cancels", 2)
        return "cancels"

    leaving = Task(call=units.walker("leaving", range(3)), is_cancelled=lambda: cancelled)
    waiting = Task(call=units.walker("waiting", range(3)), weight=2, is_cancelled=lambda: cancelled)
    results = units.group.run([cancels, leaving, waiting], capacity=1)
    assert results[0].value == "cancels"
    assert all(isinstance(result.error, TaskAbandonedError) for result in results[1:])
    assert [unit for unit, name in units.passages() if name == "leaving"] == [0]
    assert not [unit for unit, name in units.passages() if name == "waiting"]
    assert not units.in_place


def test_a_long_run_keeps_nothing_of_the_tasks_that_have_ended() -> None:
    units, count, sizes = FakeUnits(), 0, set()
    scheduled = units.group

    def arrivals() -> list[Task]:
        nonlocal count
        if count == 200 or (scheduled._run and len(scheduled._run.tasks) > 2):
            return []
        count += 1
        return [Task(call=units.walker(count, (0, 1)))]

    def on_result(_: TaskResult) -> None:
        run = scheduled._run
        assert run is not None
        sizes.add((len(run.threads) <= 8, len(run.tasks) <= 8, len(run.scheduler._weights) <= 8))

    scheduled.run([], on_result=on_result, arrivals=arrivals)
    assert count == 200
    assert sizes == {(True, True, True)}


def taken(late: deque[Task]) -> list[Task]:
    """Return and forget the tasks that have come."""
    tasks = list(late)
    late.clear()
    return tasks
