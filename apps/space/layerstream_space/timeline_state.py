"""What a streamed run moved and waited for, collected from events while it runs. Pure: no gradio, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layerstream_compare import Event

KEPT_SPANS = 6000
ACTIVITIES = ("read", "copy", "compute", "wait")


@dataclass(frozen=True, slots=True)
class Span:
    """One activity on one unit: seconds after the measured generation began, and the bytes moved."""

    activity: str
    unit: int
    sweep: int
    start_s: float
    end_s: float
    num_bytes: int


@dataclass(slots=True)
class TimelineState:
    """The life of one streamed generation.

    Attributes:
        plan: where everything lives, once the model is loaded.
        spans: the last activities.
        seconds: of each activity, over the whole run.
        bytes_read: over the whole run.
        sweeps: seen so far.
        end_s: of the last activity.
    """

    plan: Mapping[str, Any] | None = None
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=KEPT_SPANS))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))
    bytes_read: int = 0
    sweeps: int = 0
    end_s: float = 0.0
    _first_sweep: int | None = None

    def take(self, event: Event) -> bool:
        """Take in an event; return whether it was one of ours."""
        if event.kind == "plan":
            self.plan = event.data["plan"]
            return True
        if event.kind != "spans":
            return False
        for span in event.data["spans"]:
            self._add(Span(*span))
        return True

    def _add(self, span: Span) -> None:
        if span.end_s < 0:
            return  # of the warm-up, told late
        self.spans.append(span)
        self.seconds[span.activity] += span.end_s - span.start_s
        self.bytes_read += span.num_bytes if span.activity == "read" else 0
        if span.activity == "compute":
            self._first_sweep = (
                span.sweep if self._first_sweep is None else min(self._first_sweep, span.sweep)
            )
            self.sweeps = max(self.sweeps, span.sweep - self._first_sweep + 1)
        self.end_s = max(self.end_s, span.end_s)

    @property
    def unit_now(self) -> int | None:
        """The unit that was computed last."""
        return next((span.unit for span in reversed(self.spans) if span.activity == "compute"), None)

    def window(self, seconds: float) -> list[Span]:
        """Return the activities of the last `seconds`."""
        since = self.end_s - seconds
        return [span for span in self.spans if span.end_s > since]

    def sweep_s(self) -> float:
        """Return the seconds of one sweep: the mean over those after the first; 0 while there is none."""
        starts: dict[int, float] = {}
        for span in self.spans:
            if span.activity == "compute":
                starts[span.sweep] = min(starts.get(span.sweep, span.start_s), span.start_s)
        times = [starts[sweep] for sweep in sorted(starts)]
        return (
            (times[-1] - times[1]) / (len(times) - 2)
            if len(times) > 2
            else (times[-1] - times[0] if len(times) > 1 else 0.0)
        )
