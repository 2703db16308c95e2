"""The state of one visitor's run: a column for each case, filled from events.

It has no clock of its own and knows neither gradio nor processes. `view` decides how it looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layerstream_compare import Case, Event, Measurement

from .timeline_state import TimelineState

PHASES = {
    "starting": "starting its own process",
    "import": "loading the libraries",
    "load": "loading the weights",
    "warm-up": "warming up",
    "first-token": "reading the prompt",
    "decode": "writing",
    "quality": "measuring agreement with the exact model",
}
"""A worker's phases, in words for visitors."""


@dataclass(slots=True, kw_only=True)
class Column:
    """One case and how far it has come.

    Attributes:
        case: the case that this column shows.
        is_reference: True for the case that the others are compared with.
        status: `waiting`, `running`, `ok`, `failed`, `unavailable` or `stopped`.
        phase: the worker's phase while the case runs; a key of `PHASES`.
        since_s: when the case started.
        token_ids: the new tokens so far.
        token_texts: their texts.
        measurement: the result, once the case has ended.
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
        """True once the case has ended or was stopped."""
        return self.status not in ("waiting", "running")

    @property
    def has_failed(self) -> bool:
        """True if the case ended without a result."""
        return self.status in ("failed", "unavailable")

    @property
    def phase_text(self) -> str:
        """The phase in words for visitors."""
        return PHASES.get(self.phase, self.phase)


class RunState:
    """All columns of one run."""

    def __init__(self, cases: Sequence[Case], reference: Case | None) -> None:
        """Create a state in which every case waits.

        Args:
            cases: the cases, in the order of the columns.
            reference: the case that the others are compared with.
        """
        self.columns = [Column(case=case, is_reference=case == reference) for case in cases]
        self.timeline = TimelineState()
        self.note = ""
        self.is_stopped = False

    @property
    def reference(self) -> Column | None:
        """The column that the others are compared with."""
        return next((column for column in self.columns if column.is_reference), None)

    @property
    def running(self) -> Column | None:
        """The column whose case is running."""
        return next((column for column in self.columns if column.status == "running"), None)

    @property
    def num_over(self) -> int:
        """The number of columns that are over."""
        return sum(column.is_over for column in self.columns)

    @property
    def is_over(self) -> bool:
        """True once every column is over."""
        return self.num_over == len(self.columns)

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements so far, in the order of the columns."""
        return [column.measurement for column in self.columns if column.measurement is not None]

    def apply(self, event: Event, now_s: float) -> None:
        """Update the state with an event.

        Args:
            event: an event of one of this run's cases.
            now_s: the current time in seconds, of any clock; the views get times of the same clock.
        """
        column = next(column for column in self.columns if column.case.key == event.case.key)
        if event.measurement is not None:
            column.measurement, column.status = event.measurement, event.measurement.status
            if column.status == "ok":
                column.token_ids = list(event.measurement.token_ids)
                column.token_texts = list(event.measurement.token_texts)
        elif event.kind == "started":
            column.status, column.phase, column.since_s = "running", "starting", now_s
        elif event.kind == "phase":
            column.phase = str(event.data.get("phase", ""))
        elif event.kind == "token":
            column.token_ids.append(int(event.data["id"]))
            column.token_texts.append(str(event.data["text"]))
        else:
            self.timeline.apply(event)

    def stop(self, reason: str = "") -> None:
        """Mark every column that is not over as stopped.

        Args:
            reason: shown above the columns.
        """
        self.is_stopped, self.note = True, reason
        for column in self.columns:
            if not column.is_over:
                column.status = "stopped"

    def first_difference(self, column: Column) -> int | None:
        """Return the index of the first token that differs from the reference's, or None if none does.

        While either answer is incomplete, only the tokens that both have are compared.
        """
        reference = self.reference
        if reference is None or column.is_reference or column.has_failed:
            return None
        own, expected = column.token_ids, reference.token_ids
        for index, (own_id, expected_id) in enumerate(zip(own, expected, strict=False)):
            if own_id != expected_id:
                return index
        are_complete = column.status == "ok" and reference.status == "ok"
        return min(len(own), len(expected)) if are_complete and len(own) != len(expected) else None

    def margin_at(self, index: int) -> float | None:
        """Return the reference's margin p1 - p2 at its new token `index`, or None if it is unknown."""
        reference = self.reference
        if reference is None or reference.measurement is None:
            return None
        margins = reference.measurement.facts.get("margins") or []
        return float(margins[index]) if index < len(margins) else None
