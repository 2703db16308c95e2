"""The reads, copies, computation and waits of a streamed run, collected from events while it runs.

It has no clock and knows neither gradio nor HTML.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from layerstream import PlacementPlan, VerifiedTokens
from layerstream_compare import Event

KEPT_SPANS = 6000
ACTIVITIES = ("read", "copy", "compute", "wait")


@dataclass(frozen=True, slots=True)
class Span:
    """One activity on one unit.

    Attributes:
        activity: one of `ACTIVITIES`.
        unit: index of the unit in the plan.
        sweep: number of the sweep.
        start_s: seconds after the measured generation began; negative during the warm-up.
        end_s: when it ended, on the same scale.
        num_bytes: bytes moved.
    """

    activity: str
    unit: int
    sweep: int
    start_s: float
    end_s: float
    num_bytes: int


@dataclass(slots=True)
class TimelineState:
    """The timeline of one streamed generation; it stays empty for a case that reports none.

    Attributes:
        plan: the placement plan, once the model is loaded.
        spans: the latest activities.
        seconds: total seconds of each activity.
        bytes_read: total bytes read from disk.
        end_s: end of the latest activity.
        verified: with a draft, what each sweep after the prompt's verified.
    """

    plan: PlacementPlan | None = None
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=KEPT_SPANS))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))
    bytes_read: int = 0
    end_s: float = 0.0
    verified: list[VerifiedTokens] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        """Update the timeline with a `plan`, `spans` or `verified` event; ignore any other."""
        if event.kind == "plan":
            self.plan = PlacementPlan.from_dict(event.data["plan"])
        elif event.kind == "spans":
            for span in event.data["spans"]:
                self._add(Span(*span))
        elif event.kind == "verified":
            self.verified.append(VerifiedTokens(**event.data))

    def _add(self, span: Span) -> None:
        if span.end_s < 0:
            return  # part of the warm-up, reported late
        self.spans.append(span)
        self.seconds[span.activity] += span.end_s - span.start_s
        self.bytes_read += span.num_bytes if span.activity == "read" else 0
        self.end_s = max(self.end_s, span.end_s)

    @property
    def current_unit(self) -> int | None:
        """The unit that was computed last."""
        return next((span.unit for span in reversed(self.spans) if span.activity == "compute"), None)

    @property
    def tokens_per_sweep(self) -> float:
        """With a draft, the tokens of a sweep after the prompt's on average; 0 before the first one."""
        return sum(sweep.tokens for sweep in self.verified) / len(self.verified) if self.verified else 0.0

    def latest(self, seconds: float) -> list[Span]:
        """Return the activities of the last `seconds`."""
        start_s = self.end_s - seconds
        return [span for span in self.spans if span.end_s > start_s]

    def sweep_s(self) -> float:
        """Return the mean seconds of a sweep, 0 before there are two.

        The first sweep, which reads the prompt, is left out where there are more.
        """
        starts: dict[int, float] = {}
        for span in self.spans:
            if span.activity == "compute":
                starts[span.sweep] = min(starts.get(span.sweep, span.start_s), span.start_s)
        times = [starts[sweep] for sweep in sorted(starts)]
        if len(times) > 2:
            return (times[-1] - times[1]) / (len(times) - 2)
        return times[-1] - times[0] if len(times) == 2 else 0.0
