"""Spans: what happened when, for progress, reports and traces. Frozen values and one thread-safe recorder.

A span is one activity (`READ`, `COPY`, `WAIT`, `COMPUTE`) on one unit. Times are `time.perf_counter()`
seconds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Activity(Enum):
    """The kind of work done in a span."""

    READ = "read"
    COPY = "copy"
    WAIT = "wait"
    COMPUTE = "compute"

    # Enum's own hash is Python code, and spans are counted by activity thousands of times a second.
    __hash__ = object.__hash__


class Span(NamedTuple):
    """One activity on one unit. A tuple, because a busy stream makes thousands of them a second.

    Attributes:
        activity: what was done.
        unit: the unit's name.
        unit_index: its place in the visiting order.
        sweep: the sweep it belongs to, from 0.
        start_s: when it began (`perf_counter`).
        end_s: when it ended.
        num_bytes: bytes moved; 0 for waits and computation.
        replica: the replica's number where there are several; 0 for a read, which serves all of them.
    """

    activity: Activity
    unit: str
    unit_index: int
    sweep: int
    start_s: float
    end_s: float
    num_bytes: int = 0
    replica: int = 0

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


@dataclass(slots=True)
class ActivityTotal:
    """Sums over all spans of one activity, including those that the ring has dropped."""

    count: int = 0
    seconds: float = 0.0
    num_bytes: int = 0


@dataclass(slots=True)
class Timeline:
    """Keeps the last `capacity` spans and the totals of all spans, and passes each span to the listeners.

    Any thread may record. Listeners run on the recording thread and must be quick.
    """

    capacity: int = 20_000
    totals: dict[Activity, ActivityTotal] = field(
        default_factory=lambda: {kind: ActivityTotal() for kind in Activity}
    )
    _spans: deque[Span] = field(init=False)
    _listeners: list[Callable[[Span], None]] = field(default_factory=list)
    _sources: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Create the ring."""
        self._spans = deque(maxlen=self.capacity)

    def record(self, *spans: Span) -> None:
        """Add `spans` to the ring and the totals, and pass them to the listeners."""
        with self._lock:
            self._spans.extend(spans)
            for span in spans:
                total = self.totals[span.activity]
                total.count += 1
                total.seconds += span.end_s - span.start_s
                total.num_bytes += span.num_bytes
            listeners = tuple(self._listeners)
        for listener in listeners:
            for span in spans:
                listener(span)

    def add_source(self, flush: Callable[[], None]) -> None:
        """Call `flush` before the timeline is read: it records what is known but not recorded yet."""
        self._sources.append(flush)

    def flush(self) -> None:
        """Record all that has happened by now; `totals` are complete after it."""
        for flush in self._sources:
            flush()

    def spans(self) -> tuple[Span, ...]:
        """Return the spans still in the ring, in the order they were recorded."""
        self.flush()
        with self._lock:
            return tuple(self._spans)

    def subscribe(self, listener: Callable[[Span], None]) -> Callable[[], None]:
        """Call `listener` with every later span; return a function that unsubscribes it."""
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return unsubscribe
