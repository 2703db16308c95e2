"""The sweep group alone, when something fails: only what must end ends, and no thread is left."""

from __future__ import annotations

import gc
import random
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from kit.fake_units import FakeUnits, values

from layerstream.errors import StreamClosedError, StreamError
from layerstream.streaming import sweep_group
from layerstream.streaming.scheduler import Task, TaskResult
from layerstream.streaming.sweep_group import SweepGroup


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


def test_a_part_that_raises_ends_its_task_after_the_other_parts() -> None:
    units = FakeUnits()

    def fail() -> None:
        units.visit("bad", 0)
        raise ArithmeticError("a part failed")

    def task() -> None:
        units.group.run_together([fail, units.walker("good", (0, 1))])

    bad, other = units.group.run([task, units.walker("other", (0, 1))])
    assert isinstance(bad.error, ArithmeticError)
    assert other.value == "other"
    assert (1, "good") in units.passages()
    assert units.in_place == set()


@pytest.mark.parametrize("where", ["part", "thread"])
def test_stopping_ends_parts_and_their_tasks(where: str) -> None:
    units = FakeUnits()
    reason = StreamClosedError("the model was closed")

    def stopping() -> None:
        units.visit("stopping", 0)
        if where == "part":
            units.group.stop(reason)
        else:
            thread = threading.Thread(target=units.group.stop, args=(reason,))
            thread.start()
            thread.join(0.05)
        units.visit("stopping", 1)

    def task() -> None:
        units.group.run_together([stopping, units.walker("long", tuple(range(3)) * 10_000)])

    with pytest.raises(StreamClosedError, match="closed"):
        units.group.run([task, units.walker("other", tuple(range(3)) * 10_000)])
    assert units.in_place == set()
    assert not [thread for thread in threading.enumerate() if "layerstream-task" in thread.name]
