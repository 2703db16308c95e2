"""The state of one visitor's run: a lane for each case, filled from events. Pure: no gradio, no process, no clock of its own.

What it is told, it keeps; how it looks is the views' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layerstream_compare import Case, Event, Measurement

PHASES = {
    "starting": "starting a process of its own",
    "import": "loading the libraries",
    "load": "loading the weights",
    "warm-up": "warming up",
    "first-token": "reading the prompt",
    "decode": "writing",
    "quality": "measuring agreement with the exact model",
}
"""What a worker's phases mean to a visitor."""


@dataclass(slots=True, kw_only=True)
class Lane:
    """One case on its way.

    Attributes:
        case: which.
        is_reference: the others' answers are compared with this one's.
        status: `waiting`, `running`, `ok`, `failed`, `unavailable` or `stopped`.
        phase: of a running case.
        since_s: when it started.
        token_ids: the new tokens so far.
        token_texts: their texts.
        measurement: when it has ended.
    """

    case: Case
    is_reference: bool = False
    status: str = "waiting"
    phase: str = "starting"
    since_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    measurement: Measurement | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status not in ("waiting", "running")


class Board:
    """Every lane of one run."""

    def __init__(self, cases: Sequence[Case], reference: Case | None) -> None:
        """Start with lanes that wait.

        Args:
            cases: in the order of the lanes.
            reference: the one that the others are compared with.
        """
        self.lanes = [Lane(case=case, is_reference=case == reference) for case in cases]
        self.note = ""
        self.is_stopped = False

    @property
    def reference(self) -> Lane | None:
        """The lane that the others are compared with."""
        return next((lane for lane in self.lanes if lane.is_reference), None)

    @property
    def running(self) -> Lane | None:
        """The lane that runs now."""
        return next((lane for lane in self.lanes if lane.status == "running"), None)

    @property
    def num_over(self) -> int:
        """How many lanes have ended."""
        return sum(lane.is_over for lane in self.lanes)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.num_over == len(self.lanes)

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements so far, in the order of the lanes."""
        return [lane.measurement for lane in self.lanes if lane.measurement is not None]

    def take(self, event: Event, now_s: float) -> bool:
        """Take in an event; return whether anything but time has changed.

        Args:
            event: of one of this board's cases.
            now_s: any clock's seconds.
        """
        lane = next(lane for lane in self.lanes if lane.case.key == event.case.key)
        if event.measurement is not None:
            lane.measurement, lane.status = event.measurement, event.measurement.status
            if event.measurement.status == "ok":
                lane.token_ids, lane.token_texts = (
                    list(event.measurement.token_ids),
                    list(event.measurement.token_texts),
                )
        elif event.kind == "started":
            lane.status, lane.phase, lane.since_s = "running", "starting", now_s
        elif event.kind == "phase":
            lane.phase = str(event.data.get("phase", ""))
        elif event.kind == "token":
            lane.token_ids.append(int(event.data["id"]))
            lane.token_texts.append(str(event.data["text"]))
        else:
            return False
        return True

    def stop(self, why: str = "") -> None:
        """Mark what has not ended as stopped.

        Args:
            why: shown above the lanes.
        """
        self.is_stopped, self.note = True, why
        for lane in self.lanes:
            if not lane.is_over:
                lane.status = "stopped"

    def first_difference(self, lane: Lane) -> int | None:
        """Return the index of the first token that differs from the reference's; None while, or where, there is none.

        While either still writes, only tokens that both have can differ.
        """
        reference = self.reference
        if reference is None or lane.is_reference or lane.status in ("failed", "unavailable"):
            return None
        ours, theirs = lane.token_ids, reference.token_ids
        for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
            if our != their:
                return index
        over = lane.status == "ok" and reference.status == "ok"
        return min(len(ours), len(theirs)) if over and len(ours) != len(theirs) else None

    def margin_at(self, index: int) -> float | None:
        """Return the reference's own margin p1 - p2 at its new token `index`, where it is known."""
        reference = self.reference
        margins = (
            []
            if reference is None or reference.measurement is None
            else reference.measurement.facts.get("margins") or []
        )
        return float(margins[index]) if index < len(margins) else None
