"""The sweep group: several computations share every visit of a unit, under forwards that know nothing of it.

Room: streaming. Layer-major order under somebody else's `forward` needs several forwards suspended in the middle. Each *ride* (any
callable that runs forwards of the model) has a thread of its own, but only the holder of the **baton** runs; it is handed on where
a unit is entered. Knows units as numbers and rides as callables; knows no tokens, no weights, and not what a ride computes.

The order is fixed. A *visit* of a unit serves every rider that stands before it once, in boarding order; then the next unit in
cyclic order that anybody wants is visited. So riders that ask for the same units ride together, and one that takes another way (an
early exit, fewer sweeps, a later start) waits until the sweep comes round to it. What a ride ends with, result or exception, is
its own; the others go on. Whoever waits to board does so when there is room, and rides from its first unit on.

Invariants (each with the test that holds it, in tests/unit/streaming/test_sweep.py):
 1. One thread runs at a time: a rider, or the driver in its callback (test_only_the_holder_of_the_baton_runs).
 2. A visit serves riders in boarding order, each once (test_a_visit_serves_riders_in_boarding_order).
 3. A unit is brought once a visit and let go after its last rider (test_a_unit_is_brought_once_a_visit_however_many_ride).
 4. Every rider is served again after finitely many visits, whatever the others want (test_riders_on_different_ways_all_arrive).
 5. What is kept apart (random state) is each rider's own at every step (test_what_is_kept_apart_is_each_riders_own).
 6. Whatever ends a ride hands the baton on (test_a_ride_that_raises_leaves_and_the_others_go_on).
 7. After `run`, from any state, no rider's thread is left (test_an_interrupt_at_any_time_ends_every_thread).

Scoring many suffixes against one prefix needs no more than this: let `run` take `[prefix, suffix 1, suffix 2, …]`, each ride one
forward of the model. They board together, so the prefix, first in the list, passes every block before any suffix enters it, and
suffix k's attention in block i finds the keys and values that the prefix left in its cache in block i, in the same visit of the
same weights. Outside of blocks (masks, positions) a suffix goes by the prefix' length, which is known, and not by its cache, which
is still empty there. Rides that belong together must have the capacity to board together: None, or at least their summed weights.
test_suffixes_read_the_cache_of_a_prefix_that_rides_before_them (tests/exactness/test_riding_together.py) does it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from time import monotonic, sleep
from typing import Any, Protocol

import torch

from ..errors import StreamError
from .scheduler import Arrival, OpenUnit, Ride, RideAbandonedError, Rider, Run


class KeptApart(Protocol):
    """What is global to the process or the model, but must be each rider's own."""

    def capture(self) -> Any:
        """Return the state of now."""

    def restore(self, state: Any) -> None:
        """Make `state` the present one."""


class SweepGroup:
    """Let computations share sweeps.

    Attributes:
        sweeps: sweeps that were shared since the group was made; each read the streamed weights once.
        around: entered for the whole of every `run`: it keeps others off the model.
    """

    def __init__(self, keep: KeptApart | None = None) -> None:
        """Make a group that nobody rides in; `keep` is what each rider has of its own."""
        self.sweeps = 0
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext
        self._keep = keep or _NothingKept()
        self._here = threading.local()
        self._run: Run | None = None

    # -- for those who want something computed ---------------------------------------------------------------------------

    def run(
        self,
        rides: Iterable[Callable[[], Any] | Ride],
        *,
        capacity: float | None = None,
        on_arrival: Callable[[Arrival], object] | None = None,
    ) -> list[Arrival]:
        """Let every ride run to its end, sharing sweeps; return how each one ended, in the order given.

        Every ride starts with the caller's random state, and the caller finds its own as it left it. Contextvars are the caller's;
        other settings of a thread (autocast, say) are not: enter them inside the ride.

        Args:
            rides: callables. They board in this order, and keep it in every unit as long as they go the same way.
            capacity: rides on board weigh no more than this together; None lets all board at once. A ride that weighs more than
                all of it rides alone.
            on_arrival: told of each end as it comes, in the calling thread, while no ride runs. What it raises ends the run.

        Raises:
            StreamError: the calling thread is inside a ride or a forward of this model.
            StreamClosedError: the model is closed, or was meanwhile.
            BaseException: what `on_arrival` or Ctrl-C raised; every ride has ended by then.
        """
        if self.rides_here():
            raise StreamError("a ride cannot start another run of its own group: return first, or hand both rides to one run")
        waiting = deque(Rider(number, _as_ride(ride)) for number, ride in enumerate(rides))
        with self.around():
            self.settle()
            driver = Rider(-1, Ride(call=_nobody))
            room = float("inf") if capacity is None else capacity
            self._run = Run(driver=driver, holder=driver, waiting=waiting, room=room, first_state=self._keep.capture())
            return self._drive(self._run, on_arrival or _nobody)

    def _drive(self, run: Run, on_arrival: Callable[[Arrival], object]) -> list[Arrival]:
        arrivals: list[Arrival] = []
        try:
            while run.stop is None and (run.waiting or run.riders or run.arrived):
                self._hand_on(run, run.driver)
                while run.arrived and run.stop is None:
                    arrivals.append(run.arrived.popleft())
                    on_arrival(arrivals[-1])
        except BaseException:
            run.give_up(RideAbandonedError("the run was given up"))
            raise
        finally:
            self.settle()
        if run.stop is not None:
            raise run.stop
        return sorted(arrivals, key=lambda arrival: arrival.number)

    def stop(self, reason: BaseException, *, timeout_s: float = 10.0) -> None:
        """End the present run, if there is one: every ride ends, and `run` raises `reason`.

        Returns when the last ride has ended; at once when called by a ride or by `on_arrival`; after `timeout_s` where a ride is
        stuck in code of its own.
        """
        run = self._run
        if run is None:
            return
        run.give_up(reason)
        if not self.rides_here() and run.driver_thread != threading.get_ident():
            run.over.wait(timeout_s)

    def settle(self) -> None:
        """Wait until the last ride of a run that is over, or was interrupted anywhere, has ended; then nothing is left of it."""
        run = self._run
        if run is None:
            return
        if run.riders:
            run.give_up(RideAbandonedError("the run was given up"))
        is_interrupted = run.holder is not run.driver
        while run.riders:
            if run.holder is run.driver:
                self._hand_on(run, run.driver)
            elif not _was_started(run.holder):
                run.riders.remove(run.holder)
                run.holder = run.driver
            else:
                # the interrupt may have come between choosing and waking
                run.holder.wake.put(None)
                run.driver.wake.get()
        for thread in run.threads:
            if thread.ident is not None:
                thread.join()
        run.line.clear()
        run.let_go_empty()
        if is_interrupted:
            self._keep.restore(run.driver.state)
        self._run = None
        run.over.set()

    # -- for the model's gate and hooks ----------------------------------------------------------------------------------

    def rides_here(self) -> bool:
        """Return whether the calling thread rides."""
        return getattr(self._here, "rider", None) is not None

    def keep_off(self) -> None:
        """Refuse a thread that does not ride while others do.

        Raises:
            StreamError: it would enter a unit between riders.
        """
        if self._run is not None:
            raise StreamError("a part of this model was called while others share its sweep: call the model itself, or join them")

    def begin_forward(self) -> None:
        """Tell that the calling rider starts a forward: the visit of its first unit decides which sweep that is.

        Raises:
            StreamError: it is inside one.
        """
        rider = self._here.rider
        if rider.is_in_forward:
            raise StreamError("a forward of this model cannot start inside another one")
        rider.is_in_forward = rider.starts_forward = True

    def end_forward(self) -> None:
        """Tell that it ended. One that met no unit was a sweep of its own."""
        rider = self._here.rider
        rider.is_in_forward = False
        if rider.starts_forward:
            rider.starts_forward = False
            self.sweeps += 1

    def enter(self, unit: int, bring: Callable[[], None], let_go: Callable[[], None]) -> None:
        """Wait for the sweep to come to `unit`, and bring it if nobody has.

        Args:
            unit: its number.
            bring: puts it in place; what it raises is the calling rider's.
            let_go: takes it out again; called after the last rider.

        Raises:
            StreamClosedError: the model was closed.
            RideAbandonedError: the run was given up.
        """
        run, rider = self._present()
        run.check_going()
        run.queue_up(rider, unit)
        self._hand_on(run, rider)
        rider.wants = None
        run.check_going()
        rider.served = run.visit
        if unit not in run.open:
            bring()
            run.open[unit] = OpenUnit(let_go)
        run.open[unit].inside.add(rider)
        if rider.starts_forward and run.sweep_visit != run.visit:
            run.sweep_visit = run.visit
            self.sweeps += 1
        rider.starts_forward = False

    def leave(self, unit: int) -> None:
        """Say that the calling rider is through with `unit`; after the last one it is let go."""
        run, rider = self._present()
        entry = run.open.get(unit)
        if entry is None or rider not in entry.inside:
            return
        entry.inside.discard(rider)
        run.let_go_empty()

    # -- the baton -------------------------------------------------------------------------------------------------------

    def _present(self) -> tuple[Run, Rider]:
        run = self._run
        assert run is not None, "a rider's run is over only when the rider has left"
        return run, self._here.rider

    def _hand_on(self, run: Run, me: Rider) -> None:
        """Give the baton to whose turn it is, and return when it is `me`'s again."""
        chosen = run.next_to_run()
        if chosen is me:
            return
        me.state = self._keep.capture()
        self._give(run, chosen)
        while run.holder is not me:
            me.wake.get()
        self._keep.restore(me.state)

    def _give(self, run: Run, rider: Rider) -> None:
        run.holder = rider
        if rider.thread is not None or rider is run.driver:
            rider.wake.put(None)
            return
        arguments = (self._ride, run, rider)
        name = f"layerstream-rider-{rider.number}"
        rider.thread = threading.Thread(target=run.context.copy().run, args=arguments, name=name, daemon=True)
        run.threads.append(rider.thread)
        rider.thread.start()

    def _ride(self, run: Run, rider: Rider) -> None:
        if run.holder is not rider:
            return
        self._here.rider = rider
        try:
            self._keep.restore(run.first_state)
            run.check_going()
            with torch.no_grad():
                arrival = Arrival(number=rider.number, value=rider.ride.call())
        except BaseException as error:  # noqa: BLE001 - handed on to whoever waits for this ride
            arrival = Arrival(number=rider.number, error=error)
        self._here.rider = None
        run.get_off(rider, arrival)
        self._give(run, run.next_to_run())


class _NothingKept:
    """Keeps nothing apart."""

    def capture(self) -> None:
        """Return nothing."""

    def restore(self, state: None) -> None:
        """Do nothing."""


def _was_started(rider: Rider) -> bool:
    """Return whether `rider` has a thread that runs; one whose start was interrupted a moment ago shows within a second."""
    deadline_s = monotonic() + 1.0
    while rider.thread is not None and rider.thread.ident is None and monotonic() < deadline_s:
        sleep(0.01)
    return rider.thread is not None and rider.thread.ident is not None


def _as_ride(ride: Callable[[], Any] | Ride) -> Ride:
    return ride if isinstance(ride, Ride) else Ride(call=ride)


def _nobody(*_: object) -> None:
    """Hear of an arrival and do nothing."""
