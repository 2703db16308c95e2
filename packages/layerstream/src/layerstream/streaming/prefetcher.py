"""Read each unit from disk once, ahead of time, for all replicas.

The reads of the coming units are handed to the reader as long as a host buffer is free. Every fetched unit
goes to each attached replica's stream, and the buffer is free again when the last replica is done with it.
The prefetcher knows the order in which units were visited, not the reason for it; what a replica does with a
unit is up to its stream.

It has no thread of its own: whoever makes room for the next read, or waits for one, calls `advance`. A thread
would first have to get the interpreter's lock, which a computation gives up only every few milliseconds.

Replicas keep in step because a replica that runs ahead finds no free buffer. How long the others wait:
 - for a replica inside a forward: as long as it takes, because it will ask for its unit or fail;
 - for a replica between two forwards: not at all, or up to `patience_s` if its next forward is expected soon
   (`start_in_step`, or `join_step` of its stream).

A replica that does not run therefore never holds up another one. It is detached: what was read for it is
dropped. At its next request, it waits until the others come round to the unit that it requests; if no other
replica reads, the prefetcher turns to this unit at once.

Room: streaming. Invariants (each with the test that holds it, in tests/contract/test_async_replicas.py and
tests/unit/streaming/test_several_consumers.py):
 1. A unit is read once for all attached replicas (test_replicas_in_step_read_each_unit_once).
 2. A buffer is read into only when every replica is done with it
    (test_removing_any_wait_of_one_replica_breaks_a_result).
 3. A replica that does not request units does not hold up another
    (test_an_idle_replica_does_not_hold_up_another, test_patience_with_an_expected_replica_ends).
 4. A detached or restarting replica gets every unit that it requests (test_replicas_in_any_order_are_served).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import perf_counter

from ..checkpoint.reader import DiskReader, PreparedReads, ReadTicket
from ..errors import LayerstreamError, StreamError
from ..spec.timeline import Activity, Timeline
from .buffers import HostBuffer
from .converter import Converter
from .fetches import ANNOUNCED, Consumer, Fetch, NumberedBuffer, StreamedUnit, VisitCounter

PATIENCE_S = 2.0
"""How long replicas in step wait for one that is between two forwards."""


class Prefetcher:
    """Prefetches units in the order in which they are visited, sweep after sweep, for all replicas at once.

    Attributes:
        units: the units in their expected visiting order.
        reader: reads the disk.
        num_buffers: host buffers in the pool.
        lock: guards everything that the prefetcher and its consumers share.
        timeline: records every read.
        is_closed: nothing more is read.
        upcoming: the index of the unit that is fetched next.
    """

    def __init__(
        self,
        units: Sequence[StreamedUnit],
        reader: DiskReader,
        allocate: Callable[[], Sequence[HostBuffer]],
        *,
        timeline: Timeline,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Allocate the host buffers; `start` begins to prefetch the first units.

        Args:
            units: the units in their expected visiting order.
            reader: reads the disk.
            allocate: returns the host buffers: staging for accelerators, the slots themselves on a CPU.
            timeline: records every read, copy and wait.
            patience_s: how long replicas in step wait for one that is between two forwards.
        """
        self.units = tuple(units)
        self.reader, self.timeline = reader, timeline
        self.lock = threading.Lock()
        self.is_closed = False
        self.upcoming = 0
        self._patience_s = patience_s
        self._allocate = allocate
        self._all_buffers: list[NumberedBuffer] = []
        self._buffers: deque[NumberedBuffer] = deque()
        self._successor = [(index + 1) % len(self.units) for index in range(len(self.units))]
        self._all_free = threading.Condition(self.lock)
        self._consumers: list[Consumer] = []
        self._fetched = VisitCounter()
        self._in_flight: list[Fetch] = []
        self._reads: dict[tuple[int, int], PreparedReads] = {}
        self._is_changing = False
        self.restore_buffers()
        self.num_buffers = len(self._all_buffers)
        self._converter: Converter | None = None
        if any(unit.source.needs_conversion and unit.host is None for unit in self.units):
            self._converter = Converter(self.units, reader, on_done=self._complete)

    def start(self, consumers: Sequence[Consumer]) -> None:
        """Begin to read for `consumers`, which share the prefetcher's lock from now on."""
        with self.lock:
            self._consumers = list(consumers)
            self.advance()

    def close(self) -> None:
        """Stop reading and let go of every buffer. Close the consumers first, and the reader afterwards."""
        with self.lock:
            self.is_closed = True
            in_flight = list(self._in_flight)
            for fetch in in_flight:
                if fetch.ticket is not None:
                    fetch.ticket.cancel()
        if self._converter is not None:
            self._converter.close()
        with self.lock:
            self._buffers.clear()
            self._all_buffers.clear()
            self._reads.clear()
            for unit in self.units:
                unit.host = None

    # -- while no forward runs -----------------------------------------------------------------------------

    def free_buffers(self) -> None:
        """Detach every replica and let go of the buffers, until `restore_buffers`."""
        with self.lock:
            self.begin_change()
            for consumer in self._consumers:
                consumer.detach()
            self.end_change()
            while len(self._buffers) < len(self._all_buffers) and not self.is_closed:
                self._all_free.wait()  # a read is under way
            self._buffers.clear()
            self._all_buffers.clear()
            self._reads.clear()

    def restore_buffers(self) -> None:
        """Allocate the buffers, if they are not there."""
        with self.lock:
            if not self._all_buffers and not self.is_closed:
                self._all_buffers = [NumberedBuffer(*each) for each in zip(self._allocate(), count())]
                self._buffers.extend(self._all_buffers)

    # -- for replicas that run at the same time ------------------------------------------------------------

    def start_in_step(self) -> None:
        """Let all replicas begin at the same unit, and wait for each other until each one's `leave_step`."""
        with self.lock:
            for consumer in self._consumers:
                consumer.expect(ANNOUNCED)
            if any(consumer.is_waiting or consumer.is_in_forward for consumer in self._consumers):
                return
            queue_lengths = {consumer.num_queued for consumer in self._consumers}
            if len(queue_lengths) == 1 and all(consumer.is_attached for consumer in self._consumers):
                return  # the same fetches are queued for all of them
            self.begin_change()
            for consumer in self._consumers:
                consumer.detach()
                consumer.attach()
            self.upcoming = 0
            self.advance()
            self.end_change()

    # -- for consumers, under the lock ---------------------------------------------------------------------

    def begin_change(self) -> None:
        """Begin a change; first put everything in order if Ctrl-C broke off an earlier one."""
        if self._is_changing:
            self._recover()
        self._is_changing = True

    def end_change(self) -> None:
        """End a change: all is in order again."""
        self._is_changing = False

    def advance(self) -> None:
        """Fetch units as far as buffers and replicas allow; detach replicas that nobody should wait for."""
        while not self.is_closed:
            if self._may_fetch():
                self._fetch_upcoming()
            elif not self._detach_idle():
                return

    def wake_waiting(self) -> None:
        """Let every computation that waits look again: how long it may have to wait has changed."""
        for consumer in self._consumers:
            if consumer.is_waiting:
                consumer.wake()

    def set_successor(self, unit: int, successor: int) -> None:
        """Expect `successor` after `unit` from now on."""
        self._successor[unit] = successor

    def release(self, fetch: Fetch) -> None:
        """Record that one lease no longer uses the buffer; the last one frees it, or cancels the read."""
        fetch.num_leases -= 1
        if fetch.num_leases:
            return
        if fetch.is_finished:
            self._free(fetch)
        elif fetch.ticket is not None:
            fetch.ticket.cancel()

    def refuse_deadlock(self, consumer: Consumer) -> None:
        """Refuse a wait of `consumer` that could never end.

        Raises:
            StreamError: computations that wait for another unit hold every buffer.
        """
        starving = [other for other in self._consumers if other is consumer or other.is_starving]
        held = set().union(*(other.leased_buffers() for other in starving))
        if len(held) >= self.num_buffers > 0:
            raise StreamError(f"another unit was requested while all {self.num_buffers} slots are in use")

    def patience_left_s(self) -> float | None:
        """Return the seconds until an idle replica may be detached; None when no other one starves for it."""
        if not self._is_any_starving():
            return None
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        idle = [consumer for consumer in attached if not (consumer.is_waiting or consumer.is_in_forward)]
        awaited = [
            consumer
            for consumer in idle
            if consumer.is_expected and (consumer.num_queued or len(idle) == len(attached))
        ]
        if not awaited:
            return None
        since_s = min(consumer.idle_since_s for consumer in awaited)
        return max(0.001, since_s + self._patience_s - perf_counter())

    def _may_fetch(self) -> bool:
        self._attach_waiting()
        is_wanted = False
        for consumer in self._consumers:
            if consumer.is_attached:
                if consumer.is_full:
                    return False
                is_wanted = True
        return is_wanted and (bool(self._buffers) or not self.units[self.upcoming].needs_buffer)

    def _fetch_upcoming(self) -> None:
        """Fetch the upcoming unit for every attached replica."""
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        unit = self.units[self.upcoming]
        fetch = Fetch(unit=self.upcoming, sweep=self._fetched.visit(self.upcoming), num_leases=len(attached))
        for consumer in self._consumers:
            if consumer.rejoin_unit is not None:
                consumer.num_missed += 1
        self.upcoming = self._successor[fetch.unit]
        if unit.needs_buffer:
            self._submit_read(fetch, self._buffers.popleft())
        else:
            fetch.is_finished = True
        for consumer in attached:
            consumer.enqueue(fetch)

    def _submit_read(self, fetch: Fetch, buffer: NumberedBuffer) -> None:
        fetch.buffer = buffer
        self._in_flight.append(fetch)
        before = buffer.wait_for_copies if buffer.copied else None
        reads = self._reads_of(fetch.unit, buffer)
        fetch.ticket = ReadTicket(
            reads.num_bytes, len(reads.pieces), before=before, on_done=partial(self._on_read, fetch)
        )
        try:
            self.reader.queue(fetch.ticket, reads)
        except LayerstreamError as error:
            self._in_flight.remove(fetch)
            fetch.error, fetch.is_finished = error, True
            return
        if not fetch.ticket.num_jobs:  # all of its tensors are converted from others
            assert self._converter is not None
            self._converter.put(fetch)

    def _reads_of(self, unit: int, buffer: NumberedBuffer) -> PreparedReads:
        reads = self._reads.get((unit, buffer.index))
        if reads is None:
            reads = self._reads[unit, buffer.index] = self._prepare(self.units[unit], buffer.host)
        return reads

    def _prepare(self, unit: StreamedUnit, buffer: HostBuffer) -> PreparedReads:
        if unit.host is None:
            return self.reader.prepare(unit.source.requests(buffer))
        num_bytes = unit.source.layout.host_bytes
        return self.reader.prepare_copy(
            unit.host.view, unit.host.address, buffer.view[:num_bytes], buffer.address
        )

    def _free(self, fetch: Fetch) -> None:
        if fetch.buffer is not None:
            self._buffers.append(fetch.buffer)
            fetch.buffer = None
            self._all_free.notify()

    def _recover(self) -> None:
        """Put everything in order after Ctrl-C: drop what was fetched, and find the buffers that are free."""
        leased = [fetch for consumer in self._consumers for fetch in consumer.recover()]
        self._in_flight = [fetch for fetch in self._in_flight if self._will_complete(fetch)]
        for fetch in self._in_flight:
            fetch.num_leases = 0
        for fetch in leased:
            fetch.num_leases = leased.count(fetch)
        used = [fetch.buffer for fetch in (*self._in_flight, *leased)]
        self._buffers = deque(buffer for buffer in self._all_buffers if buffer not in used)

    def _will_complete(self, fetch: Fetch) -> bool:
        """Cancel a fetch; return whether `_complete` still comes for it."""
        ticket = fetch.ticket
        if ticket is None:
            return False
        ticket.cancel()
        return not ticket.num_jobs or self.reader.was_queued(ticket)

    # -- on a thread of the reader or the converter --------------------------------------------------------

    def _on_read(self, fetch: Fetch, ticket: ReadTicket) -> None:
        """Go on with a fetch whose reads have ended."""
        unit = self.units[fetch.unit]
        is_read = ticket.error is None and unit.host is None
        try:
            if is_read:
                times_s, num_bytes = (ticket.started_s, ticket.ended_s), unit.source.read_bytes
                self.timeline.record(unit.span(Activity.READ, fetch.sweep, *times_s, num_bytes))
        finally:  # A listener of the timeline may raise.
            if is_read and self._converter is not None and unit.source.needs_conversion and fetch.num_leases:
                self._converter.put(fetch)
            else:
                self._complete(fetch, ticket.error)

    def _complete(self, fetch: Fetch, error: LayerstreamError | None) -> None:
        """Let the replicas use a fetch, or free its buffer if none wants it any more."""
        with self.lock:
            if fetch in self._in_flight:
                self._in_flight.remove(fetch)
            fetch.error, fetch.is_finished = error, True
            if not fetch.num_leases:
                self._free(fetch)
            for consumer in self._consumers:
                consumer.on_fetched()
            self.advance()

    # -- which replicas are attached -----------------------------------------------------------------------

    def _attach_waiting(self) -> None:
        """Attach the replicas that wait for the upcoming unit.

        If no attached replica needs what is read, turn to the unit of the one that has waited the longest.
        """
        waiting = {}
        for consumer in self._consumers:
            if consumer.rejoin_unit is not None:
                waiting[consumer] = consumer.rejoin_unit
        if not waiting:
            return
        if self.upcoming not in waiting.values():
            attached = [consumer for consumer in self._consumers if consumer.is_attached]
            now_s = perf_counter()
            # An order that never comes round to the unit must not keep a replica waiting forever.
            is_overdue = any(consumer.num_missed > len(self.units) for consumer in waiting)
            if not is_overdue and any(not consumer.is_away(now_s, self._patience_s) for consumer in attached):
                return
            for consumer in attached:
                consumer.detach()
            self.upcoming = waiting[max(waiting, key=lambda consumer: consumer.num_missed)]
        for consumer, unit in waiting.items():
            if unit == self.upcoming:
                consumer.attach()

    def _is_any_starving(self) -> bool:
        return any(consumer.is_waiting and consumer.is_starving for consumer in self._consumers)

    def _detach_idle(self) -> bool:
        """Detach replicas that do not run, if another one starves; return whether any was detached."""
        if not self._is_any_starving():
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
