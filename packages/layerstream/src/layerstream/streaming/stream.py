"""Have each unit ready on one replica's device when a computation asks for it.

The computation calls `acquire(unit)` and releases the lease afterwards. The units that the prefetcher reads
are queued here, and the *delivery* thread moves them onto the device in order. A stream knows its own replica
only: that other replicas share the reads is up to the prefetcher.

Room: streaming. Invariants (each with the test that holds it, in tests/unit/streaming/test_stream.py,
tests/contract/test_async_device.py and tests/faults/test_life_cycle.py):
 1. A host buffer is read into only when every copy out of it is done
    (test_removing_any_wait_breaks_the_result).
 2. A slot is copied into only when the last computation that used it is done (the same test).
 3. A computation starts only when the copy into its slot is done (the same test).
 4. Units come in the order in which they are requested; an unexpected unit restarts the prefetch there
    (test_any_order_is_served).
 5. Nothing is allocated for a unit once the stream runs (test_a_thousand_sweeps_leak_nothing).
 6. After `close()`, from any state, no thread is left and every buffer is free
    (test_close_in_any_state_leaves_no_thread).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch

from ..checkpoint.reader import ReadTicket
from ..errors import LayerstreamError, ReplicaStoppedError, StreamClosedError, StreamError
from ..spec.timeline import Activity
from .device_buffers import DeviceBuffers, Slot
from .fetches import Consumer, Fetch, StreamedUnit, VisitCounter
from .prefetcher import Prefetcher


@dataclass(slots=True, eq=False)
class Lease:
    """One unit on its way to the device, then in place.

    Attributes:
        unit: the index of the unit in the stream.
        sweep: the sweep that it was fetched for.
        fetch: the fetch whose buffer it still uses; None once it is copied out of it, or recycled.
        slot: the device slot that it is in; None on a CPU device, and before the copy.
        event: happens when the copy into the slot is done.
        is_ready: it is in place, or failed.
        is_cancelled: no computation will ask for it.
        error: why it could not be fetched.
    """

    unit: int
    sweep: int
    fetch: Fetch | None = None
    slot: Slot | None = None
    event: Any = None
    is_ready: bool = False
    is_cancelled: bool = False
    error: LayerstreamError | None = None

    @property
    def key(self) -> tuple[int, int]:
        """The unit and the number of its slot or buffer: the same key means the same addresses."""
        if self.slot is not None:
            return self.unit, self.slot.index
        return self.unit, self.buffer_index

    @property
    def buffer_index(self) -> int:
        """The number of the host buffer that it is in; -1 when it is in none."""
        return self.fetch.buffer.index if self.fetch is not None and self.fetch.buffer is not None else -1


class WeightStream(Consumer):
    """Delivers units to one replica, in the order in which it requests them."""

    def __init__(self, prefetcher: Prefetcher, buffers: DeviceBuffers, *, index: int = 0) -> None:
        """Start the delivery thread; nothing is fetched before the prefetcher is started.

        Args:
            prefetcher: reads the disk, for this replica and others.
            buffers: the device's slots; a CPU device has none, there the host buffers are the slots.
            index: the replica's number, for timelines.
        """
        super().__init__()
        self.units: tuple[StreamedUnit, ...] = tuple(
            replace(unit, replica=index) for unit in prefetcher.units
        )
        self._prefetcher, self._buffers, self._timeline = prefetcher, buffers, prefetcher.timeline
        self._is_host = buffers.runtime.is_host
        self._free_slots: deque[Slot] = deque(buffers.slots)
        self._depth = prefetcher.num_buffers + len(buffers.slots)
        self._num_slots = len(buffers.slots) or prefetcher.num_buffers
        # One lock, the prefetcher's, with two conditions: each thread is woken only for its own reason.
        self._lock = prefetcher.lock
        self._may_deliver = threading.Condition(self._lock)
        self._finished = threading.Condition(self._lock)
        self._queue: deque[Lease] = deque()
        self._deliveries: deque[tuple[Lease, Fetch]] = deque()
        self._leased: list[Lease] = []
        self._last_unit: int | None = None
        self._visited = VisitCounter()
        self._closed = False
        self._stopped_by: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="layerstream-delivery", daemon=True)
        self._thread.start()

    # -- for the computation -------------------------------------------------------------------------------

    def acquire(self, unit: int) -> Lease:
        """Wait until the unit is in place on the device; return a lease of it.

        Raises:
            ReadFailedError: the unit's bytes could not be read; the next `acquire` tries again.
            StreamClosedError: the stream is closed.
            ReplicaStoppedError: the work of another replica failed.
            StreamError: every slot is leased already, so the unit could never arrive.
        """
        start_s = perf_counter()
        with self._lock:
            sweep = self._visited.visit(unit)
            lease = self._wait_until_ready(unit)
            self._queue.popleft()
            self._prefetcher.wake()
            if lease.error is not None:
                error = lease.error
                self._recycle(lease)
                self.detach()
                raise error
            self._leased.append(lease)
        self._buffers.order_compute_after(lease.event)
        self._timeline.record(self.units[unit].span(Activity.WAIT, sweep, start_s, perf_counter()))
        return lease

    def release(self, lease: Lease) -> None:
        """Free the memory of a lease; a copy into it will wait for the computation issued so far."""
        event = self._buffers.compute_event()
        with self._lock:
            if lease in self._leased:
                self._leased.remove(lease)
                if lease.slot is not None:
                    lease.slot.free_after = event
                self._recycle(lease)

    def release_all(self) -> None:
        """Release every lease that an interrupted computation left."""
        for lease in tuple(self._leased):
            self.release(lease)

    def views(self, lease: Lease) -> dict[str, torch.Tensor]:
        """Return the unit's tensors in the memory of `lease`."""
        unit = self.units[lease.unit]
        if lease.slot is not None:
            return unit.source.device_views(lease.slot.bytes)
        assert lease.fetch is not None
        assert lease.fetch.buffer is not None
        return unit.source.host_views(lease.fetch.buffer.host.bytes)

    def begin_forward(self) -> None:
        """Make other replicas wait for this one; each call needs an `end_forward`."""
        with self._lock:
            self.forwards += 1

    def end_forward(self) -> None:
        """End a forward: other replicas no longer wait for this one, unless its next forward is expected."""
        with self._lock:
            self.forwards = max(0, self.forwards - 1)
            self.idle_since_s = perf_counter()
            self._prefetcher.wake()

    def leave_step(self) -> None:
        """Make other replicas no longer expect another forward of this one soon."""
        with self._lock:
            self.is_expected = False
            self._prefetcher.wake()

    def stop(self, error: BaseException) -> None:
        """Make every `acquire` fail until `resume`, waiting ones too: another replica failed with `error`."""
        with self._lock:
            self._stopped_by = error
            self._finished.notify_all()

    def resume(self) -> None:
        """Undo `stop`, and forget forwards that Ctrl-C may have ended before their `end_forward`."""
        with self._lock:
            self._stopped_by = None
            self.forwards = 0

    def free_slots(self) -> None:
        """Free what units are delivered into, until `restore_slots`; no forward may run, no view remain."""
        with self._lock:
            self.detach()
            while len(self._free_slots) < len(self._buffers.slots) and not self._closed:
                self._finished.wait()  # a copy is under way
        self._buffers.free()
        self._free_slots.clear()
        if self._is_host:
            self._prefetcher.free_buffers()

    def restore_slots(self) -> None:
        """Allocate again what `free_slots` freed, if it did; the next `acquire` starts the prefetch."""
        if self._is_host:
            self._prefetcher.restore_buffers()
        if not self._closed and self._buffers.restore():
            self._free_slots = deque(self._buffers.slots)

    def close(self) -> None:
        """Stop the delivery and free everything. Safe to call twice and in any state.

        Close the prefetcher afterwards, not before.
        """
        with self._lock:
            self._closed = True
            self.detach()
            self._may_deliver.notify_all()
            self._finished.notify_all()
            self._prefetcher.wake()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._deliveries.clear()
            self._leased.clear()
            self._free_slots.clear()
            self._buffers.slots.clear()
            for unit in self.units:
                unit.pinned = None

    def _wait_until_ready(self, unit: int) -> Lease:
        """Return the lease of `unit` at the head of the queue once it is ready."""
        self._check_open()
        if self._last_unit is not None:
            self._prefetcher.set_successor(self._last_unit, unit)
        self._last_unit = unit
        self.is_waiting = True
        try:
            lease = self._wait_until_queued(unit)
            while not lease.is_ready or lease.is_cancelled:
                self._finished.wait()
                self._check_open()
                if lease.is_cancelled:
                    lease = self._wait_until_queued(unit)
        finally:
            self.is_waiting = False
            self.rejoin_unit = None
        return lease

    def _wait_until_queued(self, unit: int) -> Lease:
        """Return the lease of `unit` once it is at the head of the queue.

        If the head is another unit, or another is read next, rejoin where the reads come to `unit`.
        """
        while not (self._queue and self._queue[0].unit == unit):
            if self._queue or not self.is_attached or self._prefetcher.upcoming != unit:
                self.detach()
                self.rejoin_unit = unit
            self._refuse_deadlock(unit)
            self._prefetcher.wake()
            self._finished.wait()
            self._check_open()
        return self._queue[0]

    def _refuse_deadlock(self, unit: int) -> None:
        if len(self._leased) >= self._num_slots:
            raise StreamError(
                f"unit {self.units[unit].name!r} was requested while all {self._num_slots} slots are in use"
            )
        if self._is_host:
            self._prefetcher.refuse_deadlock(self)

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError(
                "the weight stream is closed: the model was closed, or its `with` block has ended"
            )
        if self._stopped_by is not None:
            raise ReplicaStoppedError(
                f"stopped because the work on another device failed: {self._stopped_by}"
            ) from self._stopped_by

    # -- for the prefetcher, under its lock ----------------------------------------------------------------

    @property
    def num_queued(self) -> int:
        """The number of units fetched for this replica that it has not requested yet."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be fetched for this replica."""
        return len(self._queue) >= self._depth

    def leased_buffers(self) -> set[int]:
        """Return the numbers of the host buffers that the computation uses."""
        return {lease.buffer_index for lease in self._leased if lease.slot is None}

    def enqueue(self, fetch: Fetch) -> Callable[[], None]:
        """Queue a lease for `fetch`; return a callback to run, without the lock, after the submission."""
        lease = Lease(unit=fetch.unit, sweep=fetch.sweep, fetch=fetch)
        self._queue.append(lease)
        self._finished.notify_all()
        return partial(self._on_submitted, lease, fetch)

    def drop_queue(self) -> None:
        """Cancel everything fetched for this replica and not requested yet."""
        for lease in self._queue:
            self._cancel(lease)
        self._queue.clear()
        self._finished.notify_all()

    def _cancel(self, lease: Lease) -> None:
        lease.is_cancelled = True
        self._may_deliver.notify()
        if lease.fetch is not None:
            self._prefetcher.cancel(lease.fetch)
        if lease.is_ready:
            self._recycle(lease)

    def _recycle(self, lease: Lease) -> None:
        """Return a lease's memory to the pools."""
        if lease.slot is not None:
            self._free_slots.append(lease.slot)
        if lease.fetch is not None:
            self._prefetcher.release(lease.fetch)
        lease.slot = lease.fetch = None
        self._may_deliver.notify()

    # -- delivery ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._deliver_next():
            pass

    def _on_submitted(self, lease: Lease, fetch: Fetch) -> None:
        if fetch.ticket is not None and self._is_host and not self.units[lease.unit].source.needs_conversion:
            # Nothing is left to do after the read: the reader's thread itself marks the unit ready, which
            # saves one hand-over.
            fetch.ticket.on_done(partial(self._on_read_done, lease, fetch, fetch.ticket))
            return
        with self._lock:
            self._deliveries.append((lease, fetch))
            self._may_deliver.notify()

    def _on_read_done(self, lease: Lease, fetch: Fetch, ticket: ReadTicket) -> None:
        lease.error = ticket.error
        if lease.error is None:
            self._prefetcher.record_read(fetch)
        self._mark_ready(lease)

    def _deliver_next(self) -> bool:
        """Move the next unit that was read onto the device and mark it ready; return False when closed."""
        with self._lock:
            while not self._closed and not self._deliveries:
                self._may_deliver.wait()
            if not self._deliveries:
                return False
            lease, fetch = self._deliveries.popleft()
        try:
            self._prefetcher.finish(fetch)
        except LayerstreamError as error:
            lease.error = error
        if self._is_host or lease.error is not None or lease.is_cancelled:
            self._mark_ready(lease)
        else:
            self._copy(lease, fetch)
        return True

    def _mark_ready(self, lease: Lease) -> None:
        with self._lock:
            lease.is_ready = True
            if lease.is_cancelled:
                self._recycle(lease)
            self._finished.notify_all()

    def _copy(self, lease: Lease, fetch: Fetch) -> None:
        with self._lock:
            while not self._free_slots and not self._closed and not lease.is_cancelled:
                self._may_deliver.wait()
            slot = self._free_slots.popleft() if self._free_slots and not self._closed else None
        if slot is None:
            self._mark_ready(lease)
            return
        start_s = perf_counter()
        unit = self.units[lease.unit]
        host = unit.pinned or (fetch.buffer.host if fetch.buffer is not None else None)
        assert host is not None
        event = self._buffers.start_copy(host.bytes, unit.source.layout, slot)
        lease.event, lease.slot, lease.fetch = event, slot, None
        self._mark_ready(lease)
        # The host buffer may be read into again only once the copy out of it is done.
        self._buffers.runtime.host_wait(event)
        num_bytes = sum(run.num_bytes for run in unit.source.layout.copies)
        self._timeline.record(unit.span(Activity.COPY, lease.sweep, start_s, perf_counter(), num_bytes))
        with self._lock:
            self._prefetcher.release(fetch)
