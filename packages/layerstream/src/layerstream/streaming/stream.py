"""Have each unit ready on one replica's device when a computation asks for it.

The computation calls `acquire(unit)` and releases the lease afterwards. The units that the prefetcher fetches
are queued here, and copied into slots in their order: each copy is issued as soon as its unit is in host
memory and a slot is free. That is by the thread that gives back the slot, or by the one that ends the read;
neither waits for a copy. A stream knows its own replica only: that other replicas share the reads is up to
the prefetcher.

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
 7. Ctrl-C at any moment loses no buffer and no slot (test_ctrl_c_at_any_moment_loses_nothing).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch

from ..errors import ReplicaStoppedError, StreamClosedError, StreamError
from .device_buffers import DeviceBuffers, Slot
from .fetches import ANNOUNCED, Consumer, Fetch, StreamedUnit, VisitCounter
from .lease import Lease
from .prefetcher import Prefetcher
from .visit_spans import VisitSpans


class WeightStream(Consumer):
    """Delivers units to one replica, in the order in which it requests them."""

    def __init__(self, prefetcher: Prefetcher, buffers: DeviceBuffers, *, index: int = 0) -> None:
        """Take over the slots; nothing is fetched before the prefetcher is started.

        Args:
            prefetcher: reads the disk, for this replica and others.
            buffers: the device's slots; a CPU device has none, there the host buffers are the slots.
            index: the replica's number.
        """
        super().__init__()
        runtime = buffers.runtime
        self.units: tuple[StreamedUnit, ...] = tuple(
            replace(unit, replica=index) for unit in prefetcher.units
        )
        self._prefetcher, self._buffers, self._index = prefetcher, buffers, index
        self._is_host = runtime.is_host
        self._free_slots: deque[Slot] = deque(buffers.slots)
        # Units in host memory are queued a whole sweep ahead, so that the reads of others go on meanwhile.
        self._depth = max(prefetcher.num_buffers + len(buffers.slots), len(self.units))
        self._num_slots = len(buffers.slots) or prefetcher.num_buffers
        self._lock = prefetcher.lock
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Lease] = deque()
        self._to_copy: deque[Lease] = deque()
        self._leased: list[Lease] = []
        self._last_unit: int | None = None
        self._visited = VisitCounter()
        self._spans = VisitSpans(runtime, prefetcher.timeline)
        self._asked = runtime.new_mark()
        self._copied = [runtime.new_event() for _ in range(prefetcher.num_buffers)]
        self._closed = False
        self._stopped_by: BaseException | None = None

    # -- for the computation -------------------------------------------------------------------------------

    def acquire(self, unit: int) -> Lease:
        """Wait until the unit is in place on the device; return a lease of it.

        Raises:
            ReadFailedError: the unit's bytes could not be read; the next `acquire` tries again.
            StreamClosedError: the stream is closed.
            ReplicaStoppedError: the work of another replica failed.
            StreamError: every slot is leased already, so the unit could never arrive.
        """
        runtime = self._buffers.runtime
        compute = runtime.compute_stream()
        runtime.mark(self._asked, compute)
        with self._lock:
            self._prefetcher.begin_change()
            try:
                lease = self._take(unit)
            except Exception:
                self._prefetcher.end_change()
                raise
            self._prefetcher.end_change()
        marks, slot = lease.marks, lease.slot
        assert marks is not None
        marks.asked, self._asked = self._asked, marks.asked
        if slot is not None:
            runtime.stream_wait(compute, slot.copied)
        runtime.mark(marks.start, compute)
        marks.is_started = True
        return lease

    def release(self, lease: Lease) -> None:
        """Free the memory of a lease; a copy into it will wait for the computation issued so far."""
        runtime, marks = self._buffers.runtime, lease.marks
        compute = runtime.compute_stream()
        if lease.slot is not None:
            self._buffers.record_release(lease.slot)
        with self._lock:
            self._prefetcher.begin_change()
            if lease in self._leased:
                self._leased.remove(lease)
                self._recycle(lease)
                self._issue_copies()
                self._prefetcher.advance()
            self._prefetcher.end_change()
        if marks is not None:
            lease.marks = None
            runtime.mark(marks.end, compute)
            self._spans.finish(marks)

    def release_all(self) -> None:
        """Release every lease that an interrupted computation left."""
        for lease in tuple(self._leased):
            self.release(lease)

    def views(self, lease: Lease) -> dict[str, torch.Tensor]:
        """Return the unit's tensors in the memory of `lease`."""
        unit = self.units[lease.unit]
        if lease.slot is not None:
            return unit.source.device_views(lease.slot.bytes)
        assert lease.fetch.buffer is not None
        return unit.source.host_views(lease.fetch.buffer.host.bytes)

    def begin_forward(self) -> None:
        """Make other replicas wait for this one until `end_forward`; one forward at a time."""
        with self._lock:
            self.is_in_forward = True

    def end_forward(self) -> None:
        """End a forward: other replicas no longer wait for this one, unless its next forward is expected."""
        with self._lock:
            self.is_in_forward = False
            self.idle_since_s = perf_counter()
            self._wake_others()

    def join_step(self) -> None:
        """Make other replicas expect forwards of the calling thread on this one, until its `leave_step`."""
        with self._lock:
            self.expect(threading.get_ident())
            self._prefetcher.wake_waiting()

    def leave_step(self) -> None:
        """Make other replicas no longer expect forwards of the calling thread. Safe without `join_step`."""
        with self._lock:
            self.expected_from -= {threading.get_ident(), ANNOUNCED}
            self._wake_others()

    def stop(self, error: BaseException) -> None:
        """Make every `acquire` fail until `resume`, waiting ones too: another replica failed with `error`."""
        with self._lock:
            self._stopped_by = error
            self._changed.notify_all()

    def resume(self, *, is_idle: Callable[[], bool]) -> None:
        """Undo `stop`. If no forward is under way, forget one that Ctrl-C ended before `end_forward`.

        Args:
            is_idle: returns whether no forward is under way. It is asked under the lock: a forward that
                begins after its answer comes to `begin_forward` afterwards.
        """
        with self._lock:
            self._stopped_by = None
            if is_idle():
                self.is_in_forward = False

    def free_slots(self) -> None:
        """Free what units are delivered into, until `restore_slots`; no forward may run, no view remain."""
        with self._lock:
            self._prefetcher.begin_change()
            self.detach()
            self._prefetcher.end_change()
            self._free_slots.clear()
        self._buffers.free()
        if self._is_host:
            self._prefetcher.free_buffers()

    def restore_slots(self) -> None:
        """Allocate again what `free_slots` freed, if it did; the next `acquire` starts the prefetch."""
        if self._is_host:
            self._prefetcher.restore_buffers()
        if not self._closed and self._buffers.restore():
            self._free_slots = deque(self._buffers.slots)

    def close(self) -> None:
        """Stop the deliveries and free everything. Safe to call twice and in any state.

        Close the prefetcher afterwards, not before.
        """
        with self._lock:
            was_closed, self._closed = self._closed, True
            self._prefetcher.begin_change()
            self.detach()
            self._prefetcher.end_change()
            self._changed.notify_all()
            self._wake_others()
        if was_closed:
            return
        # The slots' memory may be used for something else from here on.
        self._buffers.finish()
        self._spans.flush()
        with self._lock:
            self._leased.clear()
            self._free_slots.clear()
            self._buffers.slots.clear()
            for unit in self.units:
                unit.host = None

    # -- inside acquire, under the lock --------------------------------------------------------------------

    def _take(self, unit: int) -> Lease:
        """Wait for the lease of `unit`, and take it off the queue."""
        sweep = self._visited.visit(unit)
        lease = self._wait_until_ready(unit)
        self._queue.popleft()
        if lease.error is not None:
            self._recycle(lease)
            self.detach()
            raise lease.error
        self._leased.append(lease)
        lease.marks = lease.marks or self._spans.new_marks()
        lease.marks.unit, lease.marks.sweep = self.units[unit], sweep
        self._prefetcher.advance()
        return lease

    def _wait_until_ready(self, unit: int) -> Lease:
        """Return the lease of `unit`, at the head of the queue, once it is ready."""
        self._check_open()
        if self._last_unit is not None:
            self._prefetcher.set_successor(self._last_unit, unit)
        self._last_unit = unit
        self.is_waiting = True
        try:
            while not self._is_ready(unit):
                self._wait(unit)
                self._check_open()
        finally:
            self.is_waiting, self.rejoin_unit = False, None
        return self._queue[0]

    def _is_ready(self, unit: int) -> bool:
        if not self._queue or self._queue[0].unit != unit:
            return False
        lease = self._queue[0]
        if lease.error is None and self._is_host and lease.fetch.is_finished:
            lease.error = lease.fetch.error
            return True
        return lease.error is not None or lease.slot is not None

    def _wait(self, unit: int) -> None:
        """Wait for a change; if another unit is next, first rejoin where the fetches come to this one.

        Only here the lock is given up in the middle of a change: all is in order at that moment.
        """
        if not (self._queue and self._queue[0].unit == unit):
            if self._queue or not self.is_attached or self._prefetcher.upcoming != unit:
                self.detach()
                self.rejoin_unit = unit
            self._refuse_deadlock(unit)
        self._prefetcher.advance()
        if self._is_ready(unit):
            return
        self._prefetcher.end_change()
        self._changed.wait(self._prefetcher.patience_left_s())
        self._prefetcher.begin_change()

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

    def enqueue(self, fetch: Fetch) -> None:
        """Queue a lease for `fetch`."""
        lease = Lease(fetch.unit, fetch)
        self._queue.append(lease)
        if not self._is_host:
            self._to_copy.append(lease)
        self.on_fetched()

    def on_fetched(self) -> None:
        """Copy what is fetched by now, and let a computation that waits look again."""
        self._issue_copies()
        self.wake()

    def wake(self) -> None:
        """Let a computation that waits look again."""
        if self.is_waiting:
            self._changed.notify_all()

    def drop_queue(self) -> None:
        """Drop everything fetched for this replica and not requested yet."""
        for lease in self._queue:
            self._recycle(lease)
        self._queue.clear()
        self._to_copy.clear()
        self.wake()

    def recover(self) -> list[Fetch]:
        """Drop the queue, and find the free slots, after a change that was broken off."""
        self._queue.clear()
        self._to_copy.clear()
        leased = [lease.slot for lease in self._leased]
        self._free_slots = deque(slot for slot in self._buffers.slots if slot not in leased)
        for slot in self._free_slots:
            self._buffers.record_release(slot)
        return [lease.fetch for lease in self._leased if lease.slot is None]

    def _wake_others(self) -> None:
        """Let the others go on without this replica, if it is not needed any more."""
        self._prefetcher.begin_change()
        self._prefetcher.advance()
        self._prefetcher.wake_waiting()
        self._prefetcher.end_change()

    def _recycle(self, lease: Lease) -> None:
        """Return a lease's memory to the pools."""
        if lease.slot is not None:
            self._free_slots.append(lease.slot)
            lease.slot = None
        else:
            self._prefetcher.release(lease.fetch)

    def _issue_copies(self) -> None:
        """Start to copy the next units, in order, as long as they are fetched and slots are free."""
        while self._to_copy and self._to_copy[0].fetch.is_finished and not self._closed:
            lease = self._to_copy[0]
            lease.error = lease.fetch.error
            if lease.error is None:
                if not self._free_slots:
                    return
                self._copy(lease)
            self._to_copy.popleft()

    def _copy(self, lease: Lease) -> None:
        """Start to copy a unit into a free slot; its host buffer may be used again once the copy is done."""
        unit, buffer, runtime = self.units[lease.unit], lease.fetch.buffer, self._buffers.runtime
        host = unit.host if buffer is None else buffer.host
        assert host is not None
        slot = self._free_slots[0]
        lease.marks = self._spans.new_marks()
        try:
            self._buffers.start_copy(host.bytes, unit.source.layout, slot, lease.marks)
            if buffer is not None:
                event = self._copied[buffer.index]
                runtime.record(event, self._buffers.copies)
                buffer.copied[self._index] = partial(runtime.host_wait, event)
        except RuntimeError as error:
            lease.error = StreamError(f"unit {unit.name!r} could not be copied to {runtime.name}: {error}")
            lease.error.__cause__ = error
            return
        self._free_slots.popleft()
        lease.slot = slot
        self._prefetcher.release(lease.fetch)
