"""The sweep group alone: tasks over numbered units, no model and no weights."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from kit.fake_units import FakeUnits, values
from kit.threads import no_thread_left

from layerstream.errors import StreamClosedError, StreamError
from layerstream.streaming import sweep_group
from layerstream.streaming.scheduler import Task, TaskResult
from layerstream.streaming.sweep_group import SweepGroup


@pytest.fixture(autouse=True)
def _nothing_keeps_running() -> Iterator[None]:
    with no_thread_left():
        yield


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


def test_a_task_that_raises_ends_and_the_others_go_on() -> None:
    units = FakeUnits()

    def broken() -> None:
        units.visit("broken", 0)
        raise ValueError("deep inside")

    def broken_inside() -> None:
        units.visit("broken", 1, broken_inside_the_unit)

    def broken_inside_the_unit() -> None:
        raise KeyError("within a unit")

    good, first, second, last = units.group.run(
        [units.walker("good", (0, 1, 2)), broken, broken_inside, units.walker("last", (0, 1))]
    )
    assert (good.value, last.value) == ("good", "last")
    assert isinstance(first.error, ValueError) and isinstance(second.error, KeyError)
    assert units.in_place == set()


def test_a_failed_acquire_ends_only_the_task_that_asked_and_is_tried_again() -> None:
    group, tries = SweepGroup(), []

    def acquire() -> None:
        tries.append(None)
        if len(tries) == 1:
            raise OSError("a read error")

    def task() -> str:
        group.enter(0, acquire, lambda: None)
        group.leave(0)
        return "done"

    first, second = group.run([task, task])
    assert isinstance(first.error, OSError) and second.value == "done"


def test_results_are_reported_as_they_come_and_returned_in_order() -> None:
    units, reported = FakeUnits(), []
    results = units.group.run(
        [units.walker(3, (0,) * 3), units.walker(1, (0,)), units.walker(2, (0,) * 2)],
        on_result=reported.append,
    )
    assert [result.value for result in reported] == [1, 2, 3]
    assert [result.number for result in results] == [0, 1, 2]


def test_an_exception_in_the_callback_ends_the_run_and_reaches_the_caller() -> None:
    units = FakeUnits()

    def refuse(_: TaskResult) -> None:
        raise ArithmeticError("no more results")

    with pytest.raises(ArithmeticError, match="no more"):
        units.group.run(
            [units.walker("short", (0,)), units.walker("long", tuple(range(4)) * 1000)], on_result=refuse
        )
    assert units.in_place == set()
    assert values(units.group.run([units.walker("again", (0, 1))])) == ["again"]


def test_a_task_cannot_start_a_run_of_its_own_group() -> None:
    group = SweepGroup()
    (result,) = group.run([lambda: group.run([lambda: 1])])
    assert isinstance(result.error, StreamError)


def test_a_thread_without_a_task_is_refused_during_a_run() -> None:
    units, caught = FakeUnits(), []

    def outsider() -> None:
        try:
            units.group.refuse_outsiders()
        except StreamError as error:
            caught.append(error)

    def task() -> None:
        thread = threading.Thread(target=outsider)
        thread.start()
        thread.join()

    units.group.run([task])
    units.group.refuse_outsiders()
    assert len(caught) == 1


@pytest.mark.parametrize("where", ["task", "callback", "thread"])
def test_stopping_from_anywhere_ends_every_task_with_the_reason(where: str) -> None:
    units = FakeUnits()
    reason = StreamClosedError("the model was closed")
    tasks = [units.walker(name, tuple(range(3)) * 10_000) for name in "ab"]

    def visit_and_stop() -> None:
        units.visit("c", 0)
        if where == "task":
            units.group.stop(reason)
        if where == "thread":
            thread = threading.Thread(target=units.group.stop, args=(reason,))
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    with pytest.raises(StreamClosedError, match="was closed"):
        units.group.run(
            [*tasks, visit_and_stop],
            on_result=lambda _: units.group.stop(reason) if where == "callback" else None,
        )
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert units.in_place == set()


def test_a_task_that_swallows_exceptions_is_ended_too() -> None:
    units = FakeUnits()

    def stubborn() -> None:
        while True:
            try:
                units.visit("stubborn", 0)
            except Exception:  # noqa: BLE001 - the task under test swallows them
                continue

    def refuse(_: TaskResult) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        units.group.run([stubborn, units.walker("short", (0,))], on_result=refuse)


@pytest.fixture
def _no_lost_interrupt() -> Iterator[None]:
    """Switch the garbage collector off: Python drops a Ctrl-C that comes during one of its callbacks."""
    gc.disable()
    yield
    gc.enable()


class Interrupts:
    """Sends Ctrl-C from a thread until it has hit a run `times` times; outside a run it is ignored."""

    def __init__(self, seed: int, times: int) -> None:
        self.left, self._rng = times, random.Random(seed)
        self._is_over = threading.Event()
        self._sender = threading.Thread(target=self._send)

    def __enter__(self) -> None:
        self._kept = signal.signal(signal.SIGINT, self._handle)
        self._sender.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._sender.join()
        signal.signal(signal.SIGINT, self._kept)

    def _send(self) -> None:
        pause_s = self._rng.uniform(0.0, 0.02)
        while self.left and not self._is_over.wait(pause_s):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            pause_s = self._rng.uniform(0.0, 0.0003)

    def _handle(self, _: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code.co_filename != sweep_group.__file__:
            frame = frame.f_back
        if frame is not None and self.left:
            self.left -= 1
            raise KeyboardInterrupt


@pytest.mark.usefixtures("_no_lost_interrupt")
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_an_interrupt_at_any_time_ends_every_thread(seed: int, times: int) -> None:
    """At any point of the run, also while it is drained after an earlier interrupt."""
    units = FakeUnits()
    with Interrupts(seed, times), pytest.raises(KeyboardInterrupt):
        units.group.run(
            [units.walker(name, tuple(range(5)) * 100_000) for name in range(4)], on_result=lambda _: None
        )
    assert values(units.group.run([units.walker("again", (0, 1))])) == ["again"]
    assert units.in_place == set()


def test_a_listener_that_fails_during_a_release_ends_the_run_with_its_error() -> None:
    group = SweepGroup()

    def fail() -> None:
        raise LookupError("a listener's error")

    def task() -> None:
        for unit in range(100):
            group.enter(unit, lambda: None, fail)
            group.leave(unit)

    with pytest.raises(LookupError, match="listener"):
        group.run([task, task])


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


def test_soak_of_random_ways_lengths_faults_and_capacities() -> None:
    """Every task takes its own way, some with a fault; each ends as expected, and no unit stays in place."""
    rng = random.Random(7)
    units = FakeUnits()
    for _ in range(40):
        plans = [
            (
                [rng.randrange(6) for _ in range(rng.randrange(30))],
                rng.random() < 0.2,
                rng.choice((0.5, 1, 3)),
            )
            for _ in range(rng.randrange(1, 12))
        ]

        def task(number: int, way: list[int], fails: bool) -> Callable[[], int]:
            def walk() -> int:
                for step, unit in enumerate(way):
                    units.visit(number, unit, _raise if fails and step == len(way) // 2 else lambda: None)
                return number

            return walk

        tasks = [
            Task(call=task(n, way, fails), weight=weight) for n, (way, fails, weight) in enumerate(plans)
        ]
        results = units.group.run(tasks, capacity=rng.choice((None, 1, 4)))
        for number, (way, fails, _) in enumerate(plans):
            expected = (None, ZeroDivisionError) if fails and way else (number, type(None))
            assert (results[number].value, type(results[number].error)) == expected
        assert units.in_place == set()


def _raise() -> None:
    raise ZeroDivisionError
