"""The prefetcher: read each unit from the disk once, for every replica that follows.

Room: streaming. Knows the order in which units were visited, not why. One thread hands the reads of the coming units to the reader
as long as a host buffer is free; what was read goes to every attached replica's stream, and the buffer is free again when the last of
them is done with it. What a replica does with a unit is its stream's business.

Lanes keep in step because a replica that runs ahead finds no free buffer. Who is waited for:
 - a replica inside a forward: as long as it takes, for it will come or fail;
 - a replica between two forwards: not at all, or `patience_s` when it was said to come back (`gather`);
 - so a replica that does not run never holds another up. It is passed over: what was read for it is dropped, and when it asks again
   it waits for the others to come round to the unit that it wants, or has the reading turned there when nobody else reads.

Invariants (each with the test that holds it, in tests/unit/streaming/test_several_lanes.py and tests/contract/test_async_lanes.py):
 1. A unit is read once for all attached replicas (test_two_lanes_read_each_unit_once).
 2. A buffer is read into only when every replica is done with it (test_removing_any_wait_of_one_lane_breaks_a_result).
 3. A replica that stops asking holds nobody up (test_an_idle_lane_is_passed_over, test_patience_with_an_expected_lane_ends).
 4. A replica that was passed over, or restarts, gets every unit that it asks for (test_lanes_in_any_order_are_served).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from ..checkpoint.reader import DiskReader
from ..errors import LayerstreamError, StreamError
from ..spec.timeline import Activity, Timeline
from .buffers import allocate_many
from .fetches import Consumer, Fetch, NumberedBuffer, StreamedUnit, VisitCounter

PATIENCE_S = 2.0
"""How long replicas that run side by side wait for one that is between two forwards."""


class Prefetcher:
    """Prefetch units in the order in which they are visited, for ever, for all replicas at once.

    Attributes:
        units: in their expected visiting order.
        reader: reads the disk.
        lock: guards all that the prefetcher and its consumers share.
        timeline: is told of every read.
        is_closed: nothing is read any more.
        upcoming: the unit that is read next.
    """

    def __init__(
        self,
        units: Sequence[StreamedUnit],
        reader: DiskReader,
        *,
        num_buffers: int,
        buffer_bytes: int,
        timeline: Timeline,
        pinned: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Allocate the host buffers; `start` begins to prefetch the first units.

        Args:
            units: in their expected visiting order.
            reader: reads the disk.
            num_buffers: host buffers: staging for accelerators, the slots themselves on a CPU.
            buffer_bytes: the size of each.
            timeline: is told of every read, copy and wait.
            pinned: the buffers are pinned for an accelerator.
            patience_s: how long replicas that run side by side wait for one that is between two forwards.
        """
        self.units = tuple(units)
        self.reader, self.timeline = reader, timeline
        self.num_buffers = num_buffers
        self.lock = threading.Lock()
        self.is_closed = False
        self.upcoming = 0
        self._patience_s = patience_s
        self._buffers = deque(
            NumberedBuffer(host, index)
            for index, host in enumerate(allocate_many([buffer_bytes] * num_buffers, pinned=pinned))
        )
        self._successor = [(index + 1) % len(self.units) for index in range(len(self.units))]
        self._may_fetch_more = threading.Condition(self.lock)
        self._consumers: list[Consumer] = []
        self._fetched = VisitCounter()
        self._thread = threading.Thread(target=self._run, name="layerstream-prefetcher", daemon=True)

    def start(self, consumers: Sequence[Consumer]) -> None:
        """Begin to read for `consumers`, which share it from now on."""
        self._consumers = list(consumers)
        self._thread.start()

    def close(self) -> None:
        """Stop reading and free every buffer; the consumers are to be closed first."""
        with self.lock:
            self.is_closed = True
            self.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        with self.lock:
            self._buffers.clear()
            for unit in self.units:
                unit.pinned = None

    # -- for replicas that run side by side -------------------------------------------------------------------------------

    def gather(self) -> None:
        """Let all replicas begin at one place and wait for one another from now on, until each one's `is_expected` is taken back."""
        with self.lock:
            for consumer in self._consumers:
                consumer.is_expected, consumer.idle_since_s = True, perf_counter()
            if any(consumer.is_waiting or consumer.forwards for consumer in self._consumers):
                return
            if (
                all(each.is_attached for each in self._consumers)
                and len({each.num_queued for each in self._consumers}) == 1
            ):
                return  # all have the same fetches before them
            for consumer in self._consumers:
                consumer.detach()
                consumer.attach()
            self.upcoming = 0
            self.wake()

    # -- for consumers, under the lock ---------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let the prefetcher look again."""
        self._may_fetch_more.notify()

    def learn(self, unit: int, successor: int) -> None:
        """Expect `successor` after `unit` from now on."""
        self._successor[unit] = successor

    def release(self, fetch: Fetch) -> None:
        """Count a lease that does not look into the buffer any more; the last one frees it."""
        fetch.holders -= 1
        if fetch.holders == 0 and fetch.buffer is not None:
            self._buffers.append(fetch.buffer)
            fetch.buffer = None
        self.wake()

    def cancel(self, fetch: Fetch) -> None:
        """Count a lease that is not wanted any more; without any the read is cancelled."""
        fetch.wanted_by -= 1
        if fetch.wanted_by == 0 and fetch.ticket is not None:
            fetch.ticket.cancel()

    def check_room(self, consumer: Consumer) -> None:
        """Refuse a wait that could never end.

        Raises:
            StreamError: every buffer is held by computations that wait for yet another unit.
        """
        starving = [each for each in self._consumers if each is consumer or each.is_starving]
        held = set().union(*(each.leased_buffers() for each in starving))
        if len(held) >= self.num_buffers > 0:
            raise StreamError(f"another unit was asked for while all {self.num_buffers} slots are in use")

    # -- for consumers, without the lock -------------------------------------------------------------------------------

    def finish(self, fetch: Fetch) -> None:
        """Wait until a fetch is read, and convert what is to be converted; whichever replica comes first does it.

        Raises:
            LayerstreamError: it could not be read or converted; every replica is told.
        """
        with fetch.finishing:
            if not fetch.is_finished:
                try:
                    self._finish_reading(fetch, self.units[fetch.unit])
                except (LayerstreamError, OSError, RuntimeError, ValueError) as error:
                    fetch.error = (
                        error
                        if isinstance(error, LayerstreamError)
                        else _wrapped(self.units[fetch.unit].name, error)
                    )
                fetch.is_finished = True
        if fetch.error is not None:
            raise fetch.error

    def note_read(self, fetch: Fetch) -> None:
        """Record the read of a fetch, once."""
        with self.lock:
            first, fetch.is_noted = not fetch.is_noted, True
        if first and fetch.ticket is not None:
            unit, ticket = self.units[fetch.unit], fetch.ticket
            self.timeline.record(
                unit.span(
                    Activity.READ, fetch.sweep, ticket.started_s, ticket.ended_s, unit.source.read_bytes
                )
            )

    def _finish_reading(self, fetch: Fetch, unit: StreamedUnit) -> None:
        if fetch.ticket is None:
            return
        fetch.ticket.wait()  # raises too when it was cancelled, but only once nothing is read into its buffer any more
        self.note_read(fetch)
        if unit.source.needs_conversion and fetch.buffer is not None and fetch.wanted_by:
            unit.source.convert(fetch.buffer.host, self.reader)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._prefetch_next():
            pass

    def _prefetch_next(self) -> bool:
        """Hand the reads of the next unit to the reader; False when closed."""
        with self.lock:
            while not self.is_closed and not self._may_fetch():
                if not self._pass_over():
                    self._may_fetch_more.wait(self._patience_left_s())
            if self.is_closed:
                return False
            fetch, take_up = self._begin()
        if fetch.buffer is not None:
            self._start_reading(fetch, fetch.buffer)
        for each in take_up:
            each()
        return True

    def _may_fetch(self) -> bool:
        self._let_join()
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        if not attached or any(consumer.is_full for consumer in attached):
            return False
        return bool(self._buffers) or self.units[self.upcoming].pinned is not None

    def _begin(self) -> tuple[Fetch, list[Callable[[], None]]]:
        """Queue the upcoming unit for every attached replica; return its fetch and what is to be done once its read was begun."""
        takers = [consumer for consumer in self._consumers if consumer.is_attached]
        fetch = Fetch(
            unit=self.upcoming,
            sweep=self._fetched.visit(self.upcoming),
            holders=len(takers),
            wanted_by=len(takers),
        )
        if self.units[fetch.unit].pinned is None:
            fetch.buffer = self._buffers.popleft()
        for consumer in self._consumers:
            if consumer.joins_at is not None:
                consumer.passed += 1
        self.upcoming = self._successor[fetch.unit]
        return fetch, [consumer.enqueue(fetch) for consumer in takers]

    def _start_reading(self, fetch: Fetch, buffer: NumberedBuffer) -> None:
        try:
            fetch.ticket = self.reader.submit(self.units[fetch.unit].source.requests(buffer.host))
        except LayerstreamError as error:
            fetch.error = error
            return
        if not fetch.wanted_by:  # it was cancelled before there was a ticket
            fetch.ticket.cancel()

    # -- who follows ---------------------------------------------------------------------------------------------------

    def _let_join(self) -> None:
        """Attach the replicas that wait for the upcoming unit; turn the reading to the first of them when nobody else reads."""
        joining = {
            consumer: consumer.joins_at for consumer in self._consumers if consumer.joins_at is not None
        }
        if not joining:
            return
        if self.upcoming not in joining.values():
            attached = [consumer for consumer in self._consumers if consumer.is_attached]
            now_s = perf_counter()
            # An order that never comes round to the unit must not keep a replica waiting for ever.
            in_vain = any(consumer.passed > len(self.units) for consumer in joining)
            if not in_vain and any(not consumer.is_away(now_s, self._patience_s) for consumer in attached):
                return
            for consumer in attached:
                consumer.detach()
            self.upcoming = joining[max(joining, key=lambda consumer: consumer.passed)]
        for consumer, unit in joining.items():
            if unit == self.upcoming:
                consumer.attach()

    def _pass_over(self) -> bool:
        """Drop what was read for replicas that do not run, when another replica starves for it; return whether there was such a replica."""
        if not any(consumer.is_starving for consumer in self._consumers):
            return False
        now_s = perf_counter()
        idle = [
            consumer
            for consumer in self._consumers
            if consumer.is_attached and consumer.num_queued and consumer.is_away(now_s, self._patience_s)
        ]
        for consumer in idle:
            consumer.detach()
        return bool(idle)

    def _patience_left_s(self) -> float | None:
        """Return after how many seconds a replica that another one starves for may be passed over; None when nothing hangs on it."""
        if not any(consumer.is_starving for consumer in self._consumers):
            return None
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        idle = [each for each in attached if not each.is_waiting and not each.forwards]
        awaited = [
            each for each in idle if each.is_expected and (each.num_queued or len(idle) == len(attached))
        ]
        now_s = perf_counter()
        return (
            max(0.001, min(each.idle_since_s + self._patience_s - now_s for each in awaited))
            if awaited
            else None
        )


def _wrapped(unit: str, error: Exception) -> StreamError:
    wrapped = StreamError(f"unit {unit!r} could not be brought into place: {error}")
    wrapped.__cause__ = error
    return wrapped
