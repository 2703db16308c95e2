"""The baton alone: tasks over numbered units, no model and no weights."""

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


def test_only_the_holder_of_the_baton_runs() -> None:
    units, busy, most = FakeUnits(), 0, 0

    def work() -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        time.sleep(0.0005)  # lets every other thread run that could
        busy -= 1

    def task() -> None:
        for unit in (0, 1, 2) * 3:
            work()
            units.visit("task", unit, work)

    units.group.run([task] * 5, on_result=lambda _: work())
    assert most == 1


def test_a_visit_serves_riders_in_boarding_order() -> None:
    units = FakeUnits()
    assert values(units.group.run([units.walker(name, (0, 1, 0, 1)) for name in "abc"])) == ["a", "b", "c"]
    assert units.passages() == [(unit, name) for unit in (0, 1, 0, 1) for name in "abc"]


def test_a_unit_is_brought_once_a_visit_however_many_ride() -> None:
    units = FakeUnits()
    units.group.run([units.walker(name, range(4)) for name in range(10)])
    per_unit = [("bring",), *[()] * 10, ("let go",)]
    assert len(units.log) == 4 * len(per_unit)
    for unit in range(4):
        part = units.log[unit * 12 : unit * 12 + 12]
        assert part == [("bring", unit), *[(unit, name) for name in range(10)], ("let go", unit)]


def test_a_unit_is_let_go_as_soon_as_its_last_rider_is_through_with_it() -> None:
    units, seen = FakeUnits(), []

    def task() -> None:
        units.visit("task", 0)
        seen.append(set(units.in_place))

    units.group.run([task, task])
    assert seen == [{0}, set()]


def test_the_longest_ride_alone_decides_how_many_visits_there_are() -> None:
    units = FakeUnits()
    units.group.run([units.walker(length, tuple(range(5)) * length) for length in (2, 7, 1, 4)])
    assert units.visits() == list(range(5)) * 7


def test_riders_on_different_ways_all_arrive() -> None:
    """Skipped units, another order, units met twice, one unit alone for ever: nobody waits for ever, nobody overtakes for free."""
    ways = [(0, 1, 2, 3) * 3, (0, 3) * 5, (2, 1, 0), (1, 1, 1, 1), (0, 1, 0, 2) * 2, (3,) * 20, ()]
    units = FakeUnits()
    assert values(units.group.run([units.walker(number, way) for number, way in enumerate(ways)])) == list(
        range(len(ways))
    )
    for number, way in enumerate(ways):
        assert [unit for unit, name in units.passages() if name == number] == list(way)
    assert len(units.visits()) <= 20 + sum(map(len, ways)) // 2


def test_a_rider_that_skips_units_waits_for_the_others_where_the_ways_meet() -> None:
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
        ("bring", 0),
        (0, "a"),
        (0, "b"),
        ("bring", 1),
        (1, "a"),
        (1, "b"),
        ("let go", 1),
        ("let go", 0),
    ]


def test_who_waits_boards_when_there_is_room_and_starts_at_the_first_unit() -> None:
    units = FakeUnits()
    tasks = [
        Task(call=units.walker(name, tuple(range(3)) * count), weight=1)
        for name, count in (("a", 3), ("b", 1), ("c", 2))
    ]
    units.group.run(tasks, capacity=2)
    assert units.visits() == [0, 1, 2] * 3  # c takes the place of b in the very next sweep
    assert [name for unit, name in units.passages() if unit == 0] == ["a", "b", "a", "c", "a", "c"]


def test_a_ride_heavier_than_the_capacity_rides_alone() -> None:
    units = FakeUnits()
    tasks = [
        Task(call=units.walker(name, (0, 1)), weight=weight)
        for name, weight in (("a", 1.0), ("b", 9.0), ("c", 1.0))
    ]
    units.group.run(tasks, capacity=2)
    assert units.passages() == [(unit, name) for name in "abc" for unit in (0, 1)]


def test_rides_that_meet_no_unit_run_one_after_another() -> None:
    group = SweepGroup()
    assert values(group.run([lambda: 1, lambda: 2])) == [1, 2]
    assert group.run([]) == []


class Noted:
    """A global that everybody writes to, kept apart."""

    def __init__(self) -> None:
        self.present = 0

    def capture(self) -> int:
        return self.present

    def restore(self, state: int) -> None:
        self.present = state


def test_what_is_kept_apart_is_each_riders_own() -> None:
    noted = Noted()
    units = FakeUnits(SweepGroup(noted))
    noted.present = 100

    def task(step: int) -> Callable[[], int]:
        def count() -> int:
            for unit in range(4):
                noted.present += step
                units.visit(step, unit)
            return noted.present

        return count

    heard = []

    def hear(_: TaskResult) -> None:
        noted.present += 1000
        heard.append(noted.present)

    assert values(units.group.run([task(1), task(2), task(3)], on_result=hear)) == [104, 108, 112]
    assert heard == [1100, 2100, 3100]
    assert noted.present == 3100


def test_a_ride_that_raises_leaves_and_the_others_go_on() -> None:
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


def test_a_unit_that_cannot_be_brought_is_the_affair_of_who_asked_and_is_tried_again() -> None:
    group, tries = SweepGroup(), []

    def acquire() -> None:
        tries.append(None)
        if len(tries) == 1:
            raise OSError("the disk hiccups")

    def task() -> str:
        group.enter(0, acquire, lambda: None)
        group.leave(0)
        return "through"

    first, second = group.run([task, task])
    assert isinstance(first.error, OSError) and second.value == "through"


def test_results_are_told_as_they_come_and_returned_in_order() -> None:
    units, heard = FakeUnits(), []
    task_results = units.group.run(
        [units.walker(3, (0,) * 3), units.walker(1, (0,)), units.walker(2, (0,) * 2)], on_result=heard.append
    )
    assert [task_result.value for task_result in heard] == [1, 2, 3]
    assert [task_result.number for task_result in task_results] == [0, 1, 2]


def test_an_exception_in_the_callback_ends_the_run_and_comes_out() -> None:
    units = FakeUnits()

    def refuse(_: TaskResult) -> None:
        raise ArithmeticError("no more, please")

    with pytest.raises(ArithmeticError, match="no more"):
        units.group.run(
            [units.walker("short", (0,)), units.walker("long", tuple(range(4)) * 1000)], on_result=refuse
        )
    assert units.in_place == set()
    assert values(units.group.run([units.walker("again", (0, 1))])) == ["again"]


def test_a_ride_cannot_run_its_own_group() -> None:
    group = SweepGroup()
    (task_result,) = group.run([lambda: group.run([lambda: 1])])
    assert isinstance(task_result.error, StreamError)


def test_whoever_does_not_ride_is_kept_off() -> None:
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
def test_stopping_from_anywhere_ends_every_ride_with_the_reason(where: str) -> None:
    units = FakeUnits()
    reason = StreamClosedError("closed, alas")
    tasks = [units.walker(name, tuple(range(3)) * 10_000) for name in "ab"]

    def ride_and_stop() -> None:
        units.visit("c", 0)
        if where == "task":
            units.group.stop(reason)
        if where == "thread":
            thread = threading.Thread(target=units.group.stop, args=(reason,))
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    with pytest.raises(StreamClosedError, match="alas"):
        units.group.run(
            [*tasks, ride_and_stop],
            on_result=lambda _: units.group.stop(reason) if where == "callback" else None,
        )
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert units.in_place == set()


def test_a_ride_that_swallows_exceptions_ends_all_the_same() -> None:
    units = FakeUnits()

    def stubborn() -> None:
        while True:
            try:
                units.visit("stubborn", 0)
            except Exception:  # noqa: BLE001 - this is what is tried
                continue

    def refuse(_: TaskResult) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        units.group.run([stubborn, units.walker("short", (0,))], on_result=refuse)


@pytest.fixture
def _no_lost_interrupt() -> Iterator[None]:
    """Python drops a Ctrl-C that comes while a callback of the garbage collector runs."""
    gc.disable()
    yield
    gc.enable()


class Interrupts:
    """Ctrl-C, sent from a thread until it has hit a run `times` times; outside of a run it is ignored."""

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
    """Wherever the run then stands; also while it is being cleared away after the one before."""
    units = FakeUnits()
    with Interrupts(seed, times), pytest.raises(KeyboardInterrupt):
        units.group.run(
            [units.walker(name, tuple(range(5)) * 100_000) for name in range(4)], on_result=lambda _: None
        )
    assert values(units.group.run([units.walker("again", (0, 1))])) == ["again"]
    assert units.in_place == set()


def test_a_listener_that_fails_while_a_unit_goes_ends_the_run_with_its_error() -> None:
    group = SweepGroup()

    def fail() -> None:
        raise LookupError("a listener's own")

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
                for unit in (0, 1, 0):  # a unit met twice is no sweep of its own
                    units.visit("task", unit)
                units.group.end_forward()

        return run

    units.group.run([task(3), task(5), task(1)])
    assert units.group.sweeps == 5


def test_soak_of_random_ways_lengths_faults_and_capacities() -> None:
    """Every task takes its own way with faults on it; each ends as it must, and nothing is left in place."""
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
        task_results = units.group.run(tasks, capacity=rng.choice((None, 1, 4)))
        for number, (way, fails, _) in enumerate(plans):
            expected = (None, ZeroDivisionError) if fails and way else (number, type(None))
            assert (task_results[number].value, type(task_results[number].error)) == expected
        assert units.in_place == set()


def _raise() -> None:
    raise ZeroDivisionError
