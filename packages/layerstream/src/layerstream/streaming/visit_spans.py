"""Record in the timeline when each visit's copy, wait and computation happened on the device.

The device comes to them later than the host issues them. So each visit carries marks, and its spans are
recorded once the device has passed the last of them. Room: streaming.
"""

from __future__ import annotations

import threading
from collections import deque

from ..spec.timeline import Activity, Timeline
from .fetches import StreamedUnit
from .runtime import DeviceRuntime


class VisitMarks:
    """The marks of one visit; they are used again for later ones.

    Attributes:
        copy_start: the copy began.
        copy_end: it ended.
        asked: the device had nothing left to compute before this unit.
        start: the unit's computation began.
        end: it ended.
        is_started: the computation's beginning is marked; Ctrl-C may come before that.
        copied_bytes: bytes of the copy; 0 without a copy.
        unit: the unit.
        sweep: the sweep of the visit.
    """

    __slots__ = (
        "asked",
        "copied_bytes",
        "copy_end",
        "copy_start",
        "end",
        "is_started",
        "start",
        "sweep",
        "unit",
    )

    def __init__(self, runtime: DeviceRuntime) -> None:
        """Make the marks."""
        self.copy_start, self.copy_end = runtime.new_mark(), runtime.new_mark()
        self.asked, self.start, self.end = runtime.new_mark(), runtime.new_mark(), runtime.new_mark()
        self.is_started = False
        self.copied_bytes = 0
        self.unit: StreamedUnit | None = None
        self.sweep = 0


class VisitSpans:
    """Turns the marks of finished visits into spans of the timeline. Any thread may flush."""

    def __init__(self, runtime: DeviceRuntime, timeline: Timeline) -> None:
        """Record into `timeline`, which flushes this whenever it is read."""
        self._runtime, self._timeline = runtime, timeline
        self._free: list[VisitMarks] = []
        self._open: deque[VisitMarks] = deque()
        self._lock = threading.Lock()
        timeline.add_source(self.flush)

    def new_marks(self) -> VisitMarks:
        """Return marks for one visit."""
        try:
            return self._free.pop()
        except IndexError:
            return VisitMarks(self._runtime)

    def finish(self, marks: VisitMarks) -> None:
        """Record the spans of a visit, and of earlier ones, as far as the device has come to their ends."""
        if not marks.is_started:
            return
        self._open.append(marks)
        self._record_passed()

    def flush(self) -> None:
        """Record the spans of all visits so far; wait for the device where it has not come to them."""
        try:
            last = self._open[-1]
        except IndexError:
            return
        # Outside the lock: the computation goes on meanwhile, and may record them itself.
        if not self._runtime.has_passed(last.end):
            self._runtime.host_wait(last.end)
        self._record_passed()

    def _record_passed(self) -> None:
        while (passed := self._take()) is not None:
            self._record(passed)

    def _take(self) -> VisitMarks | None:
        """Return the oldest visit if the device is through with it."""
        with self._lock:
            if not self._open or not self._runtime.has_passed(self._open[0].end):
                return None
            return self._open.popleft()

    def _record(self, marks: VisitMarks) -> None:
        unit, sweep, time_s = marks.unit, marks.sweep, self._runtime.time_s
        assert unit is not None
        start_s = time_s(marks.start)
        spans = [
            unit.span(Activity.WAIT, sweep, time_s(marks.asked), start_s),
            unit.span(Activity.COMPUTE, sweep, start_s, time_s(marks.end)),
        ]
        if marks.copied_bytes:
            copy_s = time_s(marks.copy_start), time_s(marks.copy_end)
            spans.insert(0, unit.span(Activity.COPY, sweep, *copy_s, marks.copied_bytes))
        self._timeline.record(*spans)
        marks.copied_bytes, marks.unit, marks.is_started = 0, None, False
        self._free.append(marks)
