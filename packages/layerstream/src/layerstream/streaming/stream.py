"""The supply: keep the disk busy and have each unit ready when it is asked for.

Room: streaming. Knows the order in which units were visited, not why. Two threads: *supply* hands reads of the coming units to the
reader as long as a host buffer is free; *delivery* takes what was read, in order, onto the device. The computation calls
`acquire(unit)` and gives the lease back.

Invariants (each with the test that holds it, in tests/unit/streaming/test_stream.py and tests/contract/test_async_device.py):
 1. A host buffer is read into only when every copy out of it is done (test_removing_any_wait_breaks_the_result).
 2. A slot is copied into only when the last computation that used it is done (the same).
 3. A computation starts only when the copy into its slot is done (the same).
 4. Units come in the order asked for; a unit that was not expected restarts the prefetch there (test_any_order_is_served).
 5. Nothing is allocated for a unit once the stream runs (test_a_thousand_sweeps_leak_nothing).
 6. After `close()`, from any state, no thread is left and every buffer is free (test_close_in_any_state_leaves_no_thread).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch

from ..checkpoint.reader import DiskReader, ReadTicket
from ..errors import LayerstreamError, StreamClosedError, StreamError
from ..timeline import Activity, Span, Timeline
from .buffers import HostBuffer, allocate_many
from .lanes import Lane, Slot
from .sources import UnitSource


@dataclass(slots=True)
class StreamedUnit:
    """A unit that moves in every sweep.

    Attributes:
        name: its module path.
        position: its place among all units of the plan, for timelines.
        source: where its bytes come from.
        pinned: its own host buffer when it lives in host memory; None when it is read from the disk each time.
    """

    name: str
    position: int
    source: UnitSource
    pinned: HostBuffer | None = None

    def span(self, activity: Activity, sweep: int, start_s: float, end_s: float, num_bytes: int = 0) -> Span:
        """Return what happened to this unit, for the timeline."""
        return Span(
            activity=activity,
            unit=self.name,
            unit_index=self.position,
            sweep=sweep,
            start_s=start_s,
            end_s=end_s,
            num_bytes=num_bytes,
        )


@dataclass(slots=True, eq=False)
class _Buffer:
    """A host buffer of the pool and its number, for views that are made once."""

    host: HostBuffer
    index: int


@dataclass(slots=True, eq=False)
class Lease:
    """One unit on its way, then in place. `key` names the memory it is in: the same key means the same addresses.

    Attributes:
        unit: the index of the unit in the stream.
        sweep: the sweep it was fetched for.
    """

    unit: int
    sweep: int
    buffer: _Buffer | None = None
    slot: Slot | None = None
    ticket: ReadTicket | None = None
    event: Any = None
    is_ready: bool = False
    is_cancelled: bool = False
    error: LayerstreamError | None = None

    @property
    def key(self) -> tuple[int, int]:
        """(unit, number of the memory it is in)."""
        if self.slot is not None:
            return self.unit, self.slot.index
        return self.unit, self.buffer.index if self.buffer is not None else -1


@dataclass(slots=True)
class _Counters:
    sweep: int = 0
    last_unit: int = -1

    def visit(self, unit: int) -> int:
        """Count a new sweep whenever the order starts over; return the sweep's number."""
        if unit <= self.last_unit:
            self.sweep += 1
        self.last_unit = unit
        return self.sweep


class WeightStream:
    """Prefetch units in the order in which they are visited, for ever."""

    def __init__(
        self,
        units: Sequence[StreamedUnit],
        lane: Lane,
        reader: DiskReader,
        *,
        num_buffers: int,
        buffer_bytes: int,
        timeline: Timeline,
    ) -> None:
        """Allocate the host buffers and start prefetching the first units.

        Args:
            units: in their expected visiting order.
            lane: the device's slots; on a CPU device it has none and the host buffers are the slots.
            reader: reads the disk.
            num_buffers: host buffers: staging for an accelerator, the slots themselves on a CPU.
            buffer_bytes: the size of each.
            timeline: is told of every read, copy and wait.
        """
        self.units = tuple(units)
        self._lane, self._reader, self._timeline = lane, reader, timeline
        self._is_host = lane.runtime.is_host
        memory = allocate_many([buffer_bytes] * num_buffers, pinned=lane.runtime.pins_host_memory)
        self._buffers = deque(_Buffer(host, index) for index, host in enumerate(memory))
        self._free_slots: deque[Slot] = deque(lane.slots)
        self._depth = num_buffers + len(lane.slots)
        self._num_memories = len(lane.slots) or num_buffers
        self._successor = [(index + 1) % len(self.units) for index in range(len(self.units))]
        # One lock, three reasons to wait: each thread is woken only for its own.
        self._lock = threading.Lock()
        self._may_supply = threading.Condition(self._lock)
        self._may_deliver = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)
        self._queue: deque[Lease] = deque()
        self._deliveries: deque[Lease] = deque()
        self._leased: list[Lease] = []
        self._upcoming: int | None = 0
        self._last_given: int | None = None
        self._fetched, self._visited = _Counters(), _Counters()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"layerstream-{name}", daemon=True)
            for name, work in (("supply", self._supply_next), ("delivery", self._deliver_next))
        ]
        for thread in self._threads:
            thread.start()

    # -- demand ------------------------------------------------------------------------------------------------------

    def acquire(self, unit: int) -> Lease:
        """Return the unit in place on the device, waiting for it as long as it takes.

        Raises:
            ReadFailedError: its bytes could not be read; the next `acquire` tries again.
            StreamClosedError: the stream is closed.
            StreamError: every slot is leased already, so that it could never come.
        """
        start_s = perf_counter()
        with self._lock:
            sweep = self._visited.visit(unit)
            lease = self._expect(unit)
            while not lease.is_ready and not self._closed:
                self._arrived.wait()
            self._check_open()
            self._queue.popleft()
            self._may_supply.notify()
            if lease.error is not None:
                self._recycle(lease)
                self._drop_queue()
                raise lease.error
            self._leased.append(lease)
        self._lane.ready_for_compute(lease.event)
        self._timeline.record(self.units[unit].span(Activity.WAIT, sweep, start_s, perf_counter()))
        return lease

    def give_back(self, lease: Lease) -> None:
        """Free the memory of a lease; a copy into it will wait for the computation that was started so far."""
        event = self._lane.after_compute()
        with self._lock:
            if lease in self._leased:
                self._leased.remove(lease)
                if lease.slot is not None:
                    lease.slot.free_after = event
                self._recycle(lease)

    def give_back_all(self) -> None:
        """Free what an interrupted computation left behind."""
        for lease in tuple(self._leased):
            self.give_back(lease)

    def views(self, lease: Lease) -> dict[str, torch.Tensor]:
        """Return the unit's tensors in the memory of `lease`."""
        unit = self.units[lease.unit]
        if lease.slot is not None:
            return unit.source.device_views(lease.slot.bytes)
        assert lease.buffer is not None
        return unit.source.host_views(lease.buffer.host.bytes)

    def close(self) -> None:
        """Stop the threads and free every buffer. Safe to call twice and from any state."""
        with self._lock:
            self._closed = True
            for lease in self._queue:
                self._cancel(lease)
            for reason in (self._may_supply, self._may_deliver, self._arrived):
                reason.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        with self._lock:
            self._queue.clear()
            self._deliveries.clear()
            self._leased.clear()
            self._buffers.clear()
            self._free_slots.clear()
            self._lane.slots.clear()
            for unit in self.units:
                unit.pinned = None

    def _expect(self, unit: int) -> Lease:
        """Return the lease of `unit` at the head of the queue, restarting the prefetch there if another was expected."""
        self._check_open()
        if self._last_given is not None:
            self._successor[self._last_given] = unit
        self._last_given = unit
        if self._queue and self._queue[0].unit == unit:
            return self._queue[0]
        self._drop_queue()
        if len(self._leased) >= self._num_memories:
            raise StreamError(f"unit {self.units[unit].name!r} was asked for while all {self._num_memories} slots are in use")
        self._upcoming = unit
        self._may_supply.notify()
        while not self._queue and not self._closed:
            self._arrived.wait()
        self._check_open()
        return self._queue[0]

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("the weights' stream is closed: the model was closed, or its `with` block was left")

    def _drop_queue(self) -> None:
        """Forget what was prefetched; stop prefetching until a unit is asked for."""
        self._upcoming = None
        for lease in self._queue:
            self._cancel(lease)
        self._queue.clear()

    def _cancel(self, lease: Lease) -> None:
        lease.is_cancelled = True
        self._may_deliver.notify()
        if lease.ticket is not None:
            lease.ticket.cancel()
        if lease.is_ready:
            self._recycle(lease)

    def _recycle(self, lease: Lease) -> None:
        """Return a lease's memory to the pools."""
        if lease.slot is not None:
            self._free_slots.append(lease.slot)
        if lease.buffer is not None:
            self._buffers.append(lease.buffer)
        lease.slot = lease.buffer = None
        self._may_supply.notify()
        self._may_deliver.notify()

    # -- supply ------------------------------------------------------------------------------------------------------

    def _run(self, work: Any) -> None:
        while work():
            pass

    def _supply_next(self) -> bool:
        """Hand the reads of the next unit to the reader; False when closed."""
        with self._lock:
            while not self._closed and not self._may_fetch():
                self._may_supply.wait()
            if self._closed:
                return False
            assert self._upcoming is not None
            lease = Lease(unit=self._upcoming, sweep=self._fetched.visit(self._upcoming))
            unit = self.units[lease.unit]
            if unit.pinned is None:
                lease.buffer = self._buffers.popleft()
            self._queue.append(lease)
            self._upcoming = self._successor[lease.unit]
            self._arrived.notify()
        if lease.buffer is not None:
            self._start_reading(lease, unit, lease.buffer)
        if lease.ticket is not None and self._is_host and not unit.source.needs_conversion:
            # Nothing is left to do after the read: the reader thread itself says that the unit is there, one hand-over less.
            lease.ticket.on_done(partial(self._read_done, lease, unit, lease.ticket))
            return True
        with self._lock:
            self._deliveries.append(lease)
            self._may_deliver.notify()
        return True

    def _may_fetch(self) -> bool:
        if self._upcoming is None or len(self._queue) >= self._depth:
            return False
        return bool(self._buffers) or self.units[self._upcoming].pinned is not None

    def _start_reading(self, lease: Lease, unit: StreamedUnit, buffer: _Buffer) -> None:
        try:
            lease.ticket = self._reader.submit(unit.source.requests(buffer.host))
        except LayerstreamError as error:
            lease.error = error

    def _read_done(self, lease: Lease, unit: StreamedUnit, ticket: ReadTicket) -> None:
        lease.error = ticket.error
        if lease.error is None:
            self._note_read(lease, unit, ticket)
        self._announce(lease)

    # -- delivery ----------------------------------------------------------------------------------------------------

    def _deliver_next(self) -> bool:
        """Bring what was read onto the device and say that it is there; False when closed."""
        with self._lock:
            while not self._closed and not self._deliveries:
                self._may_deliver.wait()
            if not self._deliveries:
                return False
            lease = self._deliveries.popleft()
        unit = self.units[lease.unit]
        try:
            self._finish_reading(lease, unit)
        except (LayerstreamError, OSError, RuntimeError, ValueError) as error:
            lease.error = error if isinstance(error, LayerstreamError) else _wrapped(unit.name, error)
        if self._is_host or lease.error is not None or lease.is_cancelled:
            self._announce(lease)
        else:
            self._copy(lease, unit)
        return True

    def _finish_reading(self, lease: Lease, unit: StreamedUnit) -> None:
        if lease.ticket is None:
            return
        lease.ticket.wait()  # raises too when the lease was cancelled, but only once nothing is read into its buffer any more
        self._note_read(lease, unit, lease.ticket)
        if unit.source.needs_conversion and lease.buffer is not None and not lease.is_cancelled:
            unit.source.convert(lease.buffer.host, self._reader)

    def _note_read(self, lease: Lease, unit: StreamedUnit, ticket: ReadTicket) -> None:
        self._timeline.record(unit.span(Activity.READ, lease.sweep, ticket.started_s, ticket.ended_s, unit.source.read_bytes))

    def _announce(self, lease: Lease) -> None:
        with self._lock:
            lease.is_ready = True
            if lease.is_cancelled:
                self._recycle(lease)
            self._arrived.notify_all()

    def _copy(self, lease: Lease, unit: StreamedUnit) -> None:
        with self._lock:
            while not self._free_slots and not self._closed and not lease.is_cancelled:
                self._may_deliver.wait()
            slot = self._free_slots.popleft() if self._free_slots and not self._closed else None
        if slot is None:
            self._announce(lease)
            return
        start_s = perf_counter()
        host = unit.pinned or (lease.buffer.host if lease.buffer is not None else None)
        assert host is not None
        lease.event = self._lane.bring(host.bytes, unit.source.layout, slot)
        buffer, lease.buffer, lease.slot = lease.buffer, None, slot
        event = lease.event
        self._announce(lease)
        # The host buffer may be read into again only when the copy out of it is done.
        self._lane.runtime.host_wait(event)
        num_bytes = sum(run.num_bytes for run in unit.source.layout.copies)
        self._timeline.record(unit.span(Activity.COPY, lease.sweep, start_s, perf_counter(), num_bytes))
        if buffer is not None:
            with self._lock:
                self._buffers.append(buffer)
                self._may_supply.notify()


def _wrapped(unit: str, error: Exception) -> StreamError:
    wrapped = StreamError(f"unit {unit!r} could not be brought into place: {error}")
    wrapped.__cause__ = error
    return wrapped
