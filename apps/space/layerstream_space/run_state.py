"""The state of one visitor's run: a column for each case, filled from events.

It has no clock of its own and knows neither gradio nor processes. `view` decides how it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from layerstream_compare import Case, Event, Measurement, Row, rows_of

from . import forecast
from .timeline_state import TimelineState

PHASES = {
    "starting": "loading its libraries",
    "import": "the libraries are loaded",
    "load": "loading the weights",
    "warm-up": "warming up",
    "first-token": "reading the prompt",
    "decode": "writing",
    "quality": "measuring agreement with the exact model",
}
"""A worker's phases, in words for visitors."""


@dataclass(slots=True, kw_only=True)
class Column:
    """One case, with all its rounds, and how far it has come.

    Attributes:
        case: the case that this column shows, in its first round.
        is_reference: True for the case that the others are compared with.
        rounds: how often the case is measured.
        expected: the seconds that each phase is expected to take.
        status: `waiting`, `running`, `ok`, `failed`, `unavailable` or `stopped`.
        phase: the worker's phase while the case runs; a key of `PHASES`.
        since_s: when the case started.
        phase_since_s: when its phase began.
        spent: the seconds of the running round's phases that are over.
        token_ids: the new tokens so far.
        token_texts: their texts.
        measurements: the results of the rounds that have ended.
    """

    case: Case
    is_reference: bool = False
    rounds: int = 1
    expected: Mapping[str, float] = field(default_factory=dict)
    status: str = "waiting"
    phase: str = "starting"
    since_s: float = 0.0
    phase_since_s: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def row(self) -> Row | None:
        """The medians and ranges of the rounds so far, or None before the first one has ended."""
        return rows_of(self.measurements)[0] if self.measurements else None

    @property
    def measurement(self) -> Measurement | None:
        """The result to show: the first good one, or else the first one, or None before that."""
        row = self.row
        return None if row is None else row.shown

    @property
    def has_answer(self) -> bool:
        """True once a round has ended with an answer."""
        return any(each.status == "ok" for each in self.measurements)

    @property
    def is_over(self) -> bool:
        """True once every round has ended or was stopped."""
        return self.status not in ("waiting", "running")

    @property
    def has_failed(self) -> bool:
        """True if the case ended without a result."""
        return self.status in ("failed", "unavailable")

    @property
    def phase_text(self) -> str:
        """The phase in words for visitors."""
        return PHASES.get(self.phase, self.phase)

    def enter(self, phase: str, now_s: float) -> None:
        """Note that a phase begins, and with it how long the last one took."""
        # the worker reports `import` once the libraries are loaded, so that phase takes no time
        self.spent[self.phase] = now_s - self.phase_since_s
        self.phase, self.phase_since_s = phase, now_s

    def end_round(self, measurement: Measurement) -> None:
        """Take the result of a round."""
        self.measurements.append(measurement)
        is_last = len(self.measurements) == self.rounds
        self.status = ("ok" if self.has_answer else measurement.status) if is_last else "waiting"
        if measurement.status == "ok":
            self.token_ids, self.token_texts = list(measurement.token_ids), list(measurement.token_texts)


class RunState:
    """All columns of one run."""

    def __init__(
        self,
        cases: Sequence[Case],
        reference: Case | None,
        expect: Callable[[Case], Mapping[str, float]] = forecast.first_guess,
    ) -> None:
        """Create a state in which every case waits.

        Args:
            cases: the cases, in the order of the columns; later rounds share their first one's column.
            reference: the case that the others are compared with.
            expect: returns the seconds that each phase of a case is expected to take.
        """
        rounds = max(case.round for case in cases) + 1
        self.columns = [
            Column(case=case, is_reference=case == reference, rounds=rounds, expected=expect(case))
            for case in cases
            if case.round == 0
        ]
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
    def num_cases(self) -> int:
        """The number of cases, each round counted."""
        return sum(column.rounds for column in self.columns)

    @property
    def num_measured(self) -> int:
        """The number of cases that have ended, each round counted."""
        return sum(len(column.measurements) for column in self.columns)

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
        """The measurements so far, in the order of the columns, each with all its rounds."""
        return [each for column in self.columns for each in column.measurements]

    def column_of(self, case: Case) -> Column:
        """Return the column of one of this run's cases."""
        return next(column for column in self.columns if _kind(column.case) == _kind(case))

    def apply(self, event: Event, now_s: float) -> None:
        """Update the state with an event.

        Args:
            event: an event of one of this run's cases.
            now_s: the current time in seconds, of any clock; the views get times of the same clock.
        """
        column = self.column_of(event.case)
        if event.measurement is not None:
            column.enter("", now_s)
            column.end_round(event.measurement)
        elif event.kind == "started":
            column.status, column.phase, column.spent = "running", "starting", {}
            column.since_s = column.phase_since_s = now_s
        elif event.kind == "phase":
            column.enter(str(event.data.get("phase", "")), now_s)
        elif event.kind == "token":
            if not column.has_answer:  # every round writes the same answer
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
        are_complete = column.has_answer and reference.has_answer
        return min(len(own), len(expected)) if are_complete and len(own) != len(expected) else None

    def margin_at(self, index: int) -> float | None:
        """Return the reference's margin p1 - p2 at its new token `index`, or None if it is unknown."""
        reference = self.reference
        if reference is None or reference.measurement is None:
            return None
        margins = reference.measurement.facts.get("margins") or []
        return float(margins[index]) if index < len(margins) else None

    def remaining_s(self, now_s: float) -> float:
        """Return the seconds until the run's end, estimated from what its phases have taken so far."""
        seen_s = expected_s = left_s = 0.0
        for column in self.columns:
            whole_s = sum(column.expected.values())
            is_running = column.status == "running"
            rounds_left = 0 if column.is_over else column.rounds - len(column.measurements) - is_running
            left_s += max(0, rounds_left) * whole_s
            for phase, spent_s in column.spent.items():
                seen_s, expected_s = seen_s + spent_s, expected_s + column.expected.get(phase, 0.0)
            if is_running:
                elapsed_s, phase_s = now_s - column.phase_since_s, column.expected.get(column.phase, 0.0)
                over = (*column.spent, column.phase)
                left_s += max(0.0, phase_s - elapsed_s)
                left_s += sum(value for phase, value in column.expected.items() if phase not in over)
                if elapsed_s > phase_s:
                    seen_s, expected_s = seen_s + elapsed_s, expected_s + phase_s
        return left_s * forecast.pace(seen_s, expected_s)


def _kind(case: Case) -> tuple[str, str, int]:
    """Return what tells the cases of a run apart, their rounds left out."""
    return case.variant, case.attention, case.prompt_tokens
