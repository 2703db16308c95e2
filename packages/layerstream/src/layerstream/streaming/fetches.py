"""What passes between the prefetcher and the replicas' streams: units, their fetches, and a replica as the prefetcher sees it.

Room: streaming. Plain state; who waits for whom is decided in `prefetcher`, what becomes of a fetched unit in `stream`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from ..checkpoint.reader import ReadTicket
from ..errors import LayerstreamError
from ..spec.timeline import Activity, Span
from .buffers import HostBuffer
from .sources import UnitSource


@dataclass(slots=True)
class StreamedUnit:
    """A unit that moves in every sweep.

    Attributes:
        name: its module path.
        position: its place among all units of the plan, for timelines.
        source: where its bytes come from.
        pinned: its own host buffer when it lives in host memory; None when it is read from the disk each time.
        replica: the replica that looks at it, for timelines.
    """

    name: str
    position: int
    source: UnitSource
    pinned: HostBuffer | None = None
    replica: int = 0

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
            replica=self.replica,
        )


@dataclass(slots=True, eq=False)
class NumberedBuffer:
    """A host buffer of the pool and its number, for views that are made once."""

    host: HostBuffer
    index: int


@dataclass(slots=True, eq=False)
class Fetch:
    """One reading of one unit.

    Attributes:
        unit: the index of the unit.
        sweep: the sweep it is read for.
        buffer: what it is read into; None when the unit has its own in host memory.
        ticket: the reader's promise.
        error: why it failed.
        holders: leases that may still look into the buffer.
        wanted_by: those of them that were not cancelled.
        is_finished: the bytes are read and converted, or never will be.
        finishing: held by the replica that waits for the read and converts it.
    """

    unit: int
    sweep: int
    buffer: NumberedBuffer | None = None
    ticket: ReadTicket | None = None
    error: LayerstreamError | None = None
    holders: int = 0
    wanted_by: int = 0
    is_finished: bool = False
    is_noted: bool = False
    finishing: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class VisitCounter:
    """Number the sweeps of a sequence of visits."""

    sweep: int = 0
    last_unit: int = -1

    def visit(self, unit: int) -> int:
        """Count a new sweep whenever the order starts over; return the sweep's number."""
        if unit <= self.last_unit:
            self.sweep += 1
        self.last_unit = unit
        return self.sweep


class Consumer(ABC):
    """One replica's stream as the prefetcher sees it; all of it is read and written under the prefetcher's lock.

    Attributes:
        is_attached: what is read is delivered to it.
        joins_at: the unit at which it waits to be attached again.
        passed: units that were read since it waits.
        is_waiting: a computation is inside `acquire`.
        forwards: forwards of its model that are under way.
        is_expected: it was said to come back soon.
        idle_since_s: when the last forward ended, or it was said to come.
    """

    def __init__(self) -> None:
        self.is_attached = True
        self.joins_at: int | None = None
        self.passed = 0
        self.is_waiting = False
        self.forwards = 0
        self.is_expected = False
        self.idle_since_s = 0.0

    @property
    @abstractmethod
    def num_queued(self) -> int:
        """How many units were fetched for it that it has not asked for yet."""

    @property
    @abstractmethod
    def is_full(self) -> bool:
        """Whether nothing more may be fetched for it."""

    @abstractmethod
    def leased_buffers(self) -> set[int]:
        """Return the numbers of the buffers that its computation uses."""

    @abstractmethod
    def enqueue(self, fetch: Fetch) -> Callable[[], None]:
        """Queue a unit for it; return what takes it up once its read was begun, to be called without the lock."""

    @abstractmethod
    def drop_queue(self) -> None:
        """Let go of everything that was fetched for it and not asked for yet."""

    @property
    def is_starving(self) -> bool:
        """Whether a computation waits for a unit that is not even being read."""
        return self.is_waiting and not self.num_queued

    def is_away(self, now_s: float, patience_s: float) -> bool:
        """Return whether nobody should wait for it."""
        if self.is_waiting or self.forwards:
            return False
        return not self.is_expected or now_s - self.idle_since_s >= patience_s

    def detach(self) -> None:
        """Deliver nothing more to it."""
        self.drop_queue()
        self.is_attached = False

    def attach(self) -> None:
        """Deliver to it what is read from now on."""
        self.is_attached, self.joins_at, self.passed = True, None, 0
