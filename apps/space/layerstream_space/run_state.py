"""The state of one visitor's run: a column for each case, values_from_query from events. Pure: no gradio, no process, no clock of its own.

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
class Column:
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


class RunState:
    """Every column of one run."""

    def __init__(self, cases: Sequence[Case], reference: Case | None) -> None:
        """Start with columns that wait.

        Args:
            cases: in the order of the columns.
            reference: the one that the others are compared with.
        """
        self.columns = [Column(case=case, is_reference=case == reference) for case in cases]
        self.note = ""
        self.is_stopped = False

    @property
    def reference(self) -> Column | None:
        """The column that the others are compared with."""
        return next((column for column in self.columns if column.is_reference), None)

    @property
    def running(self) -> Column | None:
        """The column that runs now."""
        return next((column for column in self.columns if column.status == "running"), None)

    @property
    def num_over(self) -> int:
        """How many columns have ended."""
        return sum(column.is_over for column in self.columns)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.num_over == len(self.columns)

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements so far, in the order of the columns."""
        return [column.measurement for column in self.columns if column.measurement is not None]

    def take(self, event: Event, now_s: float) -> bool:
        """Take in an event; return whether anything but time has changed.

        Args:
            event: of one of this state's cases.
            now_s: any clock's seconds.
        """
        column = next(column for column in self.columns if column.case.key == event.case.key)
        if event.measurement is not None:
            column.measurement, column.status = event.measurement, event.measurement.status
            if event.measurement.status == "ok":
                column.token_ids, column.token_texts = (
                    list(event.measurement.token_ids),
                    list(event.measurement.token_texts),
                )
        elif event.kind == "started":
            column.status, column.phase, column.since_s = "running", "starting", now_s
        elif event.kind == "phase":
            column.phase = str(event.data.get("phase", ""))
        elif event.kind == "token":
            column.token_ids.append(int(event.data["id"]))
            column.token_texts.append(str(event.data["text"]))
        else:
            return False
        return True

    def stop(self, why: str = "") -> None:
        """Mark what has not ended as stopped.

        Args:
            why: shown above the columns.
        """
        self.is_stopped, self.note = True, why
        for column in self.columns:
            if not column.is_over:
                column.status = "stopped"

    def first_difference(self, column: Column) -> int | None:
        """Return the index of the first token that differs from the reference's; None while, or where, there is none.

        While either still writes, only tokens that both have can differ.
        """
        reference = self.reference
        if reference is None or column.is_reference or column.status in ("failed", "unavailable"):
            return None
        ours, theirs = column.token_ids, reference.token_ids
        for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
            if our != their:
                return index
        over = column.status == "ok" and reference.status == "ok"
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
