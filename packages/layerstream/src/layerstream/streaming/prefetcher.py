"""Read each unit from disk once, ahead of time, for all replicas.

One thread hands the reads of the coming units to the reader as long as a host buffer is free. It delivers
every fetched unit to each attached replica's stream, and the buffer is free again when the last replica is
done with it. The prefetcher knows the order in which units were visited, not the reason for it; what a
replica does with a unit is up to its stream.

Replicas keep in step because a replica that runs ahead finds no free buffer. How long the others wait:
 - for a replica inside a forward: as long as it takes, because it will ask for its unit or fail;
 - for a replica between two forwards: not at all, or up to `patience_s` if its next forward is expected soon
   (`start_in_step`).

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
from time import perf_counter

from ..checkpoint.reader import DiskReader
from ..errors import LayerstreamError, StreamError
from ..spec.timeline import Activity, Timeline
from .buffers import allocate_many
from .fetches import Consumer, Fetch, NumberedBuffer, StreamedUnit, VisitCounter

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
        upcoming: the index of the unit that is read next.
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
            units: the units in their expected visiting order.
            reader: reads the disk.
            num_buffers: host buffers: staging for accelerators, the slots themselves on a CPU.
            buffer_bytes: the size of each.
            timeline: records every read, copy and wait.
            pinned: whether the buffers are pinned for an accelerator.
            patience_s: how long replicas in step wait for one that is between two forwards.
        """
        self.units = tuple(units)
        self.reader, self.timeline = reader, timeline
        self.num_buffers = num_buffers
        self.lock = threading.Lock()
        self.is_closed = False
        self.upcoming = 0
        self._patience_s = patience_s
        self._buffer_bytes, self._pinned = buffer_bytes, pinned
        self._buffers: deque[NumberedBuffer] = deque()
        self._are_freed = True
        self.restore_buffers()
        self._successor = [(index + 1) % len(self.units) for index in range(len(self.units))]
        self._may_fetch_more = threading.Condition(self.lock)
        self._all_free = threading.Condition(self.lock)
        self._consumers: list[Consumer] = []
        self._fetched = VisitCounter()
        self._thread = threading.Thread(target=self._run, name="layerstream-prefetcher", daemon=True)

    def start(self, consumers: Sequence[Consumer]) -> None:
        """Begin to read for `consumers`, which share the prefetcher's lock from now on."""
        self._consumers = list(consumers)
        self._thread.start()

    def close(self) -> None:
        """Stop reading and free every buffer. Close the consumers first."""
        with self.lock:
            self.is_closed = True
            self.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        with self.lock:
            self._buffers.clear()
            for unit in self.units:
                unit.pinned = None

    # -- while no forward runs -----------------------------------------------------------------------------

    def free_buffers(self) -> None:
        """Detach every replica and free the buffers, until `restore_buffers`; a second call does nothing."""
        with self.lock:
            if self._are_freed:
                return
            for consumer in self._consumers:
                consumer.detach()
            while len(self._buffers) < self.num_buffers and not self.is_closed:
                self._all_free.wait()
            self._buffers.clear()
            self._are_freed = True

    def restore_buffers(self) -> None:
        """Allocate the buffers, if they are not there."""
        with self.lock:
            if self._are_freed and not self.is_closed:
                memory = allocate_many([self._buffer_bytes] * self.num_buffers, pinned=self._pinned)
                self._buffers.extend(NumberedBuffer(host, index) for index, host in enumerate(memory))
                self._are_freed = False

    # -- for replicas that run at the same time ------------------------------------------------------------

    def start_in_step(self) -> None:
        """Let all replicas begin at the same unit, and wait for each other until each one's `leave_step`."""
        with self.lock:
            for consumer in self._consumers:
                consumer.is_expected, consumer.idle_since_s = True, perf_counter()
            if any(consumer.is_waiting or consumer.forwards for consumer in self._consumers):
                return
            queue_lengths = {consumer.num_queued for consumer in self._consumers}
            if len(queue_lengths) == 1 and all(consumer.is_attached for consumer in self._consumers):
                return  # the same fetches are queued for all of them
            for consumer in self._consumers:
                consumer.detach()
                consumer.attach()
            self.upcoming = 0
            self.wake()

    # -- for consumers, under the lock ---------------------------------------------------------------------

    def wake(self) -> None:
        """Let the prefetcher check again whether it may fetch."""
        self._may_fetch_more.notify()

    def set_successor(self, unit: int, successor: int) -> None:
        """Expect `successor` after `unit` from now on."""
        self._successor[unit] = successor

    def release(self, fetch: Fetch) -> None:
        """Record that one lease no longer uses the buffer; the last one frees it."""
        fetch.num_leases -= 1
        if fetch.num_leases == 0 and fetch.buffer is not None:
            self._buffers.append(fetch.buffer)
            fetch.buffer = None
            self._all_free.notify_all()
        self.wake()

    def cancel(self, fetch: Fetch) -> None:
        """Record that one lease was cancelled; the last one cancels the read."""
        fetch.num_active -= 1
        if fetch.num_active == 0 and fetch.ticket is not None:
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

    # -- for consumers, without the lock -------------------------------------------------------------------

    def finish(self, fetch: Fetch) -> None:
        """Wait until a fetch is read, then convert what needs it; the first replica to come here does so.

        Raises:
            LayerstreamError: the unit could not be read or converted; raised for every replica.
        """
        with fetch.finish_lock:
            if not fetch.is_finished:
                unit = self.units[fetch.unit]
                try:
                    self._finish_read(fetch, unit)
                except LayerstreamError as error:
                    fetch.error = error
                except (OSError, RuntimeError, ValueError) as error:
                    fetch.error = _as_stream_error(unit.name, error)
                fetch.is_finished = True
        if fetch.error is not None:
            raise fetch.error

    def record_read(self, fetch: Fetch) -> None:
        """Record the read of a fetch in the timeline, once."""
        with self.lock:
            is_first, fetch.is_recorded = not fetch.is_recorded, True
        ticket = fetch.ticket
        if is_first and ticket is not None:
            unit = self.units[fetch.unit]
            num_bytes = unit.source.read_bytes
            span = unit.span(Activity.READ, fetch.sweep, ticket.started_s, ticket.ended_s, num_bytes)
            self.timeline.record(span)

    def _finish_read(self, fetch: Fetch, unit: StreamedUnit) -> None:
        if fetch.ticket is None:
            return
        # A cancelled ticket raises here too, but only once nothing more is read into its buffer.
        fetch.ticket.wait()
        self.record_read(fetch)
        if unit.source.needs_conversion and fetch.buffer is not None and fetch.num_active:
            unit.source.convert(fetch.buffer.host, self.reader)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._prefetch_next():
            pass

    def _prefetch_next(self) -> bool:
        """Hand the reads of the next unit to the reader; return False when closed."""
        with self.lock:
            while not self.is_closed and not self._may_fetch():
                if not self._detach_idle():
                    self._may_fetch_more.wait(self._patience_left_s())
            if self.is_closed:
                return False
            fetch, on_submitted = self._enqueue_upcoming()
        if fetch.buffer is not None:
            self._submit_read(fetch, fetch.buffer)
        for callback in on_submitted:
            callback()
        return True

    def _may_fetch(self) -> bool:
        self._attach_waiting()
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        if not attached or any(consumer.is_full for consumer in attached):
            return False
        return bool(self._buffers) or self.units[self.upcoming].pinned is not None

    def _enqueue_upcoming(self) -> tuple[Fetch, list[Callable[[], None]]]:
        """Queue the upcoming unit for every attached replica.

        Returns:
            The fetch, and the functions to call once its read is submitted.
        """
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        fetch = Fetch(
            unit=self.upcoming,
            sweep=self._fetched.visit(self.upcoming),
            num_leases=len(attached),
            num_active=len(attached),
        )
        if self.units[fetch.unit].pinned is None:
            fetch.buffer = self._buffers.popleft()
        for consumer in self._consumers:
            if consumer.rejoin_unit is not None:
                consumer.num_missed += 1
        self.upcoming = self._successor[fetch.unit]
        return fetch, [consumer.enqueue(fetch) for consumer in attached]

    def _submit_read(self, fetch: Fetch, buffer: NumberedBuffer) -> None:
        try:
            fetch.ticket = self.reader.submit(self.units[fetch.unit].source.requests(buffer.host))
        except LayerstreamError as error:
            fetch.error = error
            return
        if not fetch.num_active:  # it was cancelled before there was a ticket
            fetch.ticket.cancel()

    # -- which replicas are attached -----------------------------------------------------------------------

    def _attach_waiting(self) -> None:
        """Attach the replicas that wait for the upcoming unit.

        If no attached replica needs what is read, turn to the unit of the one that has waited the longest.
        """
        waiting = {
            consumer: consumer.rejoin_unit for consumer in self._consumers if consumer.rejoin_unit is not None
        }
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

    def _detach_idle(self) -> bool:
        """Detach replicas that do not run, if another one starves; return whether any was detached."""
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
        """Return the seconds until an idle replica may be detached; None when no other one starves for it."""
        if not any(consumer.is_starving for consumer in self._consumers):
            return None
        attached = [consumer for consumer in self._consumers if consumer.is_attached]
        idle = [consumer for consumer in attached if not consumer.is_waiting and not consumer.forwards]
        awaited = [
            consumer
            for consumer in idle
            if consumer.is_expected and (consumer.num_queued or len(idle) == len(attached))
        ]
        if not awaited:
            return None
        since_s = min(consumer.idle_since_s for consumer in awaited)
        return max(0.001, since_s + self._patience_s - perf_counter())


def _as_stream_error(unit: str, error: Exception) -> StreamError:
    stream_error = StreamError(f"unit {unit!r} could not be read and converted: {error}")
    stream_error.__cause__ = error
    return stream_error
