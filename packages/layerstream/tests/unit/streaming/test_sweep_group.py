"""The baton alone: rides over numbered units, no model and no weights."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from kit.fake_units import Road, values
from kit.threads import no_thread_left

from layerstream.errors import StreamClosedError, StreamError
from layerstream.streaming import sweep
from layerstream.streaming.scheduler import Arrival, Ride
from layerstream.streaming.sweep_group import SweepGroup


@pytest.fixture(autouse=True)
def _nothing_keeps_running() -> Iterator[None]:
    with no_thread_left():
        yield


def test_only_the_holder_of_the_baton_runs() -> None:
    road, busy, most = Road(), 0, 0

    def work() -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        time.sleep(0.0005)  # lets every other thread run that could
        busy -= 1

    def ride() -> None:
        for unit in (0, 1, 2) * 3:
            work()
            road.visit("rider", unit, work)

    road.group.run([ride] * 5, on_arrival=lambda _: work())
    assert most == 1


def test_a_visit_serves_riders_in_boarding_order() -> None:
    road = Road()
    assert values(road.group.run([road.walker(name, (0, 1, 0, 1)) for name in "abc"])) == ["a", "b", "c"]
    assert road.passages() == [(unit, name) for unit in (0, 1, 0, 1) for name in "abc"]


def test_a_unit_is_brought_once_a_visit_however_many_ride() -> None:
    road = Road()
    road.group.run([road.walker(name, range(4)) for name in range(10)])
    per_unit = [("bring",), *[()] * 10, ("let go",)]
    assert len(road.log) == 4 * len(per_unit)
    for unit in range(4):
        part = road.log[unit * 12 : unit * 12 + 12]
        assert part == [("bring", unit), *[(unit, name) for name in range(10)], ("let go", unit)]


def test_a_unit_is_let_go_as_soon_as_its_last_rider_is_through_with_it() -> None:
    road, seen = Road(), []

    def ride() -> None:
        road.visit("rider", 0)
        seen.append(set(road.in_place))

    road.group.run([ride, ride])
    assert seen == [{0}, set()]


def test_the_longest_ride_alone_decides_how_many_visits_there_are() -> None:
    road = Road()
    road.group.run([road.walker(length, tuple(range(5)) * length) for length in (2, 7, 1, 4)])
    assert road.visits() == list(range(5)) * 7


def test_riders_on_different_ways_all_arrive() -> None:
    """Skipped units, another order, units met twice, one unit alone for ever: nobody waits for ever, nobody overtakes for free."""
    ways = [(0, 1, 2, 3) * 3, (0, 3) * 5, (2, 1, 0), (1, 1, 1, 1), (0, 1, 0, 2) * 2, (3,) * 20, ()]
    road = Road()
    assert values(road.group.run([road.walker(number, way) for number, way in enumerate(ways)])) == list(range(len(ways)))
    for number, way in enumerate(ways):
        assert [unit for unit, name in road.passages() if name == number] == list(way)
    assert len(road.visits()) <= 20 + sum(map(len, ways)) // 2


def test_a_rider_that_skips_units_waits_for_the_others_where_the_ways_meet() -> None:
    road = Road()
    road.group.run([road.walker("whole", (0, 1, 2, 3)), road.walker("early exit", (0, 3))])
    assert road.visits() == [0, 1, 2, 3]
    assert [name for unit, name in road.passages() if unit == 3] == ["whole", "early exit"]


def test_units_within_units_are_shared_too() -> None:
    road = Road()

    def ride(name: str) -> Callable[[], None]:
        return lambda: road.visit(name, 0, lambda: road.visit(name, 1))

    road.group.run([ride("a"), ride("b")])
    assert road.log == [("bring", 0), (0, "a"), (0, "b"), ("bring", 1), (1, "a"), (1, "b"), ("let go", 1), ("let go", 0)]


def test_who_waits_boards_when_there_is_room_and_starts_at_the_first_unit() -> None:
    road = Road()
    rides = [Ride(call=road.walker(name, tuple(range(3)) * count), weight=1) for name, count in (("a", 3), ("b", 1), ("c", 2))]
    road.group.run(rides, capacity=2)
    assert road.visits() == [0, 1, 2] * 3  # c takes the place of b in the very next sweep
    assert [name for unit, name in road.passages() if unit == 0] == ["a", "b", "a", "c", "a", "c"]


def test_a_ride_heavier_than_the_capacity_rides_alone() -> None:
    road = Road()
    rides = [Ride(call=road.walker(name, (0, 1)), weight=weight) for name, weight in (("a", 1.0), ("b", 9.0), ("c", 1.0))]
    road.group.run(rides, capacity=2)
    assert road.passages() == [(unit, name) for name in "abc" for unit in (0, 1)]


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
    road = Road(SweepGroup(noted))
    noted.present = 100

    def ride(step: int) -> Callable[[], int]:
        def count() -> int:
            for unit in range(4):
                noted.present += step
                road.visit(step, unit)
            return noted.present

        return count

    heard = []

    def hear(_: Arrival) -> None:
        noted.present += 1000
        heard.append(noted.present)

    assert values(road.group.run([ride(1), ride(2), ride(3)], on_arrival=hear)) == [104, 108, 112]
    assert heard == [1100, 2100, 3100]
    assert noted.present == 3100


def test_a_ride_that_raises_leaves_and_the_others_go_on() -> None:
    road = Road()

    def broken() -> None:
        road.visit("broken", 0)
        raise ValueError("deep inside")

    def broken_inside() -> None:
        road.visit("broken", 1, broken_inside_the_unit)

    def broken_inside_the_unit() -> None:
        raise KeyError("within a unit")

    good, first, second, last = road.group.run([road.walker("good", (0, 1, 2)), broken, broken_inside, road.walker("last", (0, 1))])
    assert (good.value, last.value) == ("good", "last")
    assert isinstance(first.error, ValueError) and isinstance(second.error, KeyError)
    assert road.in_place == set()


def test_a_unit_that_cannot_be_brought_is_the_affair_of_who_asked_and_is_tried_again() -> None:
    group, tries = SweepGroup(), []

    def bring() -> None:
        tries.append(None)
        if len(tries) == 1:
            raise OSError("the disk hiccups")

    def ride() -> str:
        group.enter(0, bring, lambda: None)
        group.leave(0)
        return "through"

    first, second = group.run([ride, ride])
    assert isinstance(first.error, OSError) and second.value == "through"


def test_results_are_told_as_they_come_and_returned_in_order() -> None:
    road, heard = Road(), []
    arrivals = road.group.run([road.walker(3, (0,) * 3), road.walker(1, (0,)), road.walker(2, (0,) * 2)], on_arrival=heard.append)
    assert [arrival.value for arrival in heard] == [1, 2, 3]
    assert [arrival.number for arrival in arrivals] == [0, 1, 2]


def test_an_exception_in_the_callback_ends_the_run_and_comes_out() -> None:
    road = Road()

    def refuse(_: Arrival) -> None:
        raise ArithmeticError("no more, please")

    with pytest.raises(ArithmeticError, match="no more"):
        road.group.run([road.walker("short", (0,)), road.walker("long", tuple(range(4)) * 1000)], on_arrival=refuse)
    assert road.in_place == set()
    assert values(road.group.run([road.walker("again", (0, 1))])) == ["again"]


def test_a_ride_cannot_run_its_own_group() -> None:
    group = SweepGroup()
    (arrival,) = group.run([lambda: group.run([lambda: 1])])
    assert isinstance(arrival.error, StreamError)


def test_whoever_does_not_ride_is_kept_off() -> None:
    road, caught = Road(), []

    def outsider() -> None:
        try:
            road.group.keep_off()
        except StreamError as error:
            caught.append(error)

    def ride() -> None:
        thread = threading.Thread(target=outsider)
        thread.start()
        thread.join()

    road.group.run([ride])
    road.group.keep_off()
    assert len(caught) == 1


@pytest.mark.parametrize("where", ["ride", "callback", "thread"])
def test_stopping_from_anywhere_ends_every_ride_with_the_reason(where: str) -> None:
    road = Road()
    reason = StreamClosedError("closed, alas")
    rides = [road.walker(name, tuple(range(3)) * 10_000) for name in "ab"]

    def ride_and_stop() -> None:
        road.visit("c", 0)
        if where == "ride":
            road.group.stop(reason)
        if where == "thread":
            thread = threading.Thread(target=road.group.stop, args=(reason,))
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    with pytest.raises(StreamClosedError, match="alas"):
        road.group.run([*rides, ride_and_stop], on_arrival=lambda _: road.group.stop(reason) if where == "callback" else None)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert road.in_place == set()


def test_a_ride_that_swallows_exceptions_ends_all_the_same() -> None:
    road = Road()

    def stubborn() -> None:
        while True:
            try:
                road.visit("stubborn", 0)
            except Exception:  # noqa: BLE001 - this is what is tried
                continue

    def refuse(_: Arrival) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        road.group.run([stubborn, road.walker("short", (0,))], on_arrival=refuse)


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
        while frame is not None and frame.f_code.co_filename != sweep.__file__:
            frame = frame.f_back
        if frame is not None and self.left:
            self.left -= 1
            raise KeyboardInterrupt


@pytest.mark.usefixtures("_no_lost_interrupt")
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_an_interrupt_at_any_time_ends_every_thread(seed: int, times: int) -> None:
    """Wherever the run then stands; also while it is being cleared away after the one before."""
    road = Road()
    with Interrupts(seed, times), pytest.raises(KeyboardInterrupt):
        road.group.run([road.walker(name, tuple(range(5)) * 100_000) for name in range(4)], on_arrival=lambda _: None)
    assert values(road.group.run([road.walker("again", (0, 1))])) == ["again"]
    assert road.in_place == set()


def test_a_listener_that_fails_while_a_unit_goes_ends_the_run_with_its_error() -> None:
    group = SweepGroup()

    def fail() -> None:
        raise LookupError("a listener's own")

    def ride() -> None:
        for unit in range(100):
            group.enter(unit, lambda: None, fail)
            group.leave(unit)

    with pytest.raises(LookupError, match="listener"):
        group.run([ride, ride])


def test_sweeps_are_counted_once_for_all_that_share_them() -> None:
    road = Road()

    def ride(forwards: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(forwards):
                road.group.begin_forward()
                for unit in (0, 1, 0):  # a unit met twice is no sweep of its own
                    road.visit("rider", unit)
                road.group.end_forward()

        return run

    road.group.run([ride(3), ride(5), ride(1)])
    assert road.group.sweeps == 5


def test_soak_of_random_ways_lengths_faults_and_capacities() -> None:
    """Every ride takes its own way with faults on it; each ends as it must, and nothing is left in place."""
    rng = random.Random(7)
    road = Road()
    for _ in range(40):
        plans = [
            ([rng.randrange(6) for _ in range(rng.randrange(30))], rng.random() < 0.2, rng.choice((0.5, 1, 3)))
            for _ in range(rng.randrange(1, 12))
        ]

        def ride(number: int, way: list[int], fails: bool) -> Callable[[], int]:
            def walk() -> int:
                for step, unit in enumerate(way):
                    road.visit(number, unit, _raise if fails and step == len(way) // 2 else lambda: None)
                return number

            return walk

        rides = [Ride(call=ride(n, way, fails), weight=weight) for n, (way, fails, weight) in enumerate(plans)]
        arrivals = road.group.run(rides, capacity=rng.choice((None, 1, 4)))
        for number, (way, fails, _) in enumerate(plans):
            expected = (None, ZeroDivisionError) if fails and way else (number, type(None))
            assert (arrivals[number].value, type(arrivals[number].error)) == expected
        assert road.in_place == set()


def _raise() -> None:
    raise ZeroDivisionError
