"""Plain state that the prefetcher and the replicas' streams share.

It holds the units, their fetches, and each replica's stream as the prefetcher sees it. `prefetcher` decides
who waits for whom; `stream` decides what happens to a fetched unit. Room: streaming.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from ..checkpoint.reader import ReadTicket
from ..errors import LayerstreamError
from ..spec.timeline import Activity, Span
from .buffers import HostBuffer
from .sources import UnitSource

ANNOUNCED = -1
"""Stands for a thread that is about to start."""


@dataclass(slots=True)
class StreamedUnit:
    """A unit that moves in every sweep.

    Attributes:
        name: its module path.
        position: its index among all units of the plan, for timelines.
        source: its recipe and layout.
        host: its host buffer, if it lives in host memory; otherwise it is read from disk each time.
        passes_staging: the host buffer is not pinned: it is copied to a staging buffer first.
        replica: the number of the replica that uses it, for timelines.
    """

    name: str
    position: int
    source: UnitSource
    host: HostBuffer | None = None
    passes_staging: bool = False
    replica: int = 0

    @property
    def needs_buffer(self) -> bool:
        """Whether it comes by way of a buffer of the pool."""
        return self.host is None or self.passes_staging

    def span(self, activity: Activity, sweep: int, start_s: float, end_s: float, num_bytes: int = 0) -> Span:
        """Return a timeline span of one activity on this unit."""
        return Span(activity, self.name, self.position, sweep, start_s, end_s, num_bytes, self.replica)


@dataclass(slots=True, eq=False)
class NumberedBuffer:
    """A host buffer of the pool.

    Attributes:
        host: its memory.
        index: its number; tells apart the views into different buffers.
        copied: for each replica that copied out of it, what waits on the host until that copy is done.
    """

    host: HostBuffer
    index: int
    copied: dict[int, Callable[[], None]] = field(default_factory=dict)

    def wait_for_copies(self) -> None:
        """Block until every copy out of it is done: a read before that would change what is copied."""
        for wait in tuple(self.copied.values()):
            wait()


@dataclass(slots=True, eq=False)
class Fetch:
    """One unit on its way to all attached replicas.

    Attributes:
        unit: the index of the unit.
        sweep: the sweep that it is fetched for.
        buffer: the buffer that it is read into; None if the unit has its own in host memory.
        ticket: the reader's ticket for it; None until the read was submitted, and for a unit in host memory.
        error: why it failed; None while it has not.
        num_leases: leases that may still use the buffer.
        is_finished: the bytes are read and converted, or never will be.
    """

    unit: int
    sweep: int
    buffer: NumberedBuffer | None = None
    ticket: ReadTicket | None = None
    error: LayerstreamError | None = None
    num_leases: int = 0
    is_finished: bool = False


@dataclass(slots=True)
class VisitCounter:
    """Numbers the sweeps in a sequence of visits."""

    sweep: int = 0
    last_unit: int = -1

    def visit(self, unit: int) -> int:
        """Return the sweep that this visit belongs to; a new one begins when the order starts over."""
        if unit <= self.last_unit:
            self.sweep += 1
        self.last_unit = unit
        return self.sweep


class Consumer(ABC):
    """One replica's stream as the prefetcher sees it. The prefetcher's lock guards all of it.

    Attributes:
        is_attached: fetched units are delivered to it.
        rejoin_unit: the unit at which it waits to be attached again; None when it does not wait for this.
        num_missed: units that were fetched while it has waited to be attached.
        is_waiting: a computation is inside `acquire`.
        is_in_forward: a forward of its model is under way.
        expected_from: the threads that run another forward soon; `ANNOUNCED` stands for one to come.
        idle_since_s: when the last forward ended, or when the next one was announced.
    """

    def __init__(self) -> None:
        self.is_attached = True
        self.rejoin_unit: int | None = None
        self.num_missed = 0
        self.is_waiting = False
        self.is_in_forward = False
        self.expected_from: set[int] = set()
        self.idle_since_s = 0.0

    @property
    @abstractmethod
    def num_queued(self) -> int:
        """The number of units fetched for it that it has not requested yet."""

    @property
    @abstractmethod
    def is_full(self) -> bool:
        """Whether nothing more may be fetched for it."""

    @abstractmethod
    def leased_buffers(self) -> set[int]:
        """Return the numbers of the buffers that its computation uses."""

    @abstractmethod
    def enqueue(self, fetch: Fetch) -> None:
        """Queue a unit for it."""

    @abstractmethod
    def on_fetched(self) -> None:
        """Make use of a fetch that is finished by now."""

    @abstractmethod
    def wake(self) -> None:
        """Let a computation that waits look again."""

    @abstractmethod
    def recover(self) -> list[Fetch]:
        """Put its state in order after a change that was broken off; return the fetches that are leased."""

    @abstractmethod
    def drop_queue(self) -> None:
        """Drop everything that was fetched for it and not requested yet."""

    @property
    def is_starving(self) -> bool:
        """Whether a computation waits for a unit that is not even being read."""
        return self.is_waiting and not self.num_queued

    @property
    def is_expected(self) -> bool:
        """Whether another forward comes soon."""
        return bool(self.expected_from)

    def expect(self, thread: int) -> None:
        """Expect forwards of a thread, from now on."""
        self.expected_from.add(thread)
        self.idle_since_s = perf_counter()

    def is_away(self, now_s: float, patience_s: float) -> bool:
        """Return whether the other replicas should not wait for it."""
        if self.is_waiting or self.is_in_forward:
            return False
        return not self.is_expected or now_s - self.idle_since_s >= patience_s

    def detach(self) -> None:
        """Drop its queue, and deliver nothing more to it."""
        self.drop_queue()
        self.is_attached = False

    def attach(self) -> None:
        """Deliver to it everything that is fetched from now on."""
        self.is_attached, self.rejoin_unit, self.num_missed = True, None, 0
