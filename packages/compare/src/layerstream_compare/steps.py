"""The steps of a case, how long each one took, and how long the steps that remain may take.

Pure: it does not know processes or terminals, and times are given to it. A step is one or two of the worker's
phases, named for a reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .case import Case
from .events import Event
from .measurement import Measurement

STEP_SECONDS = "step_seconds"
"""Key in `Measurement.facts`: seconds of each step, by name, from the parent's clock."""

DOING = {
    "start": "starting its process",
    "load": "loading the model",
    "warm-up": "warming up",
    "prompt": "reading the prompt",
    "answer": "writing the answer",
    "agreement": "measuring agreement with the exact model",
}
"""Every step in running order, and what a case is doing in it."""

_STEP_OF_PHASE = {
    "import": "start",
    "load": "load",
    "warm-up": "warm-up",
    "first-token": "prompt",
    "decode": "answer",
    "quality": "agreement",
}


def steps_of(case: Case) -> tuple[str, ...]:
    """Return the steps of `case` in running order."""
    absent = set()
    if not case.warmup_tokens:
        absent.add("warm-up")
    if not case.quality:
        absent.add("agreement")
    return tuple(step for step in DOING if step not in absent)


def step_of(event: Event) -> str:
    """Return the step that `event` begins; empty if it begins none."""
    if event.kind == "started":
        return "start"
    return _STEP_OF_PHASE.get(str(event.data.get("phase", "")), "") if event.kind == "phase" else ""


class StepClock:
    """Adds up the seconds of each step of one case.

    Attributes:
        seconds: of each step that has ended, and of the current one up to the last event.
    """

    def __init__(self) -> None:
        """Start before the case has started."""
        self.seconds: dict[str, float] = {}
        self._step = ""
        self._since_s = 0.0

    def feed(self, event: Event, now_s: float) -> None:
        """Take note of an event that arrived at `now_s`, in seconds of any clock."""
        if self._step:
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now_s - self._since_s
        self._step, self._since_s = step_of(event) or self._step, now_s

    def added_to(self, measurement: Measurement) -> Measurement:
        """Return `measurement` with the seconds as a fact; unchanged if its case was never started."""
        if not self.seconds:
            return measurement
        return replace(measurement, facts=measurement.facts | {STEP_SECONDS: dict(self.seconds)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a measured case took.

    Attributes:
        case: the case.
        prompt_tokens: length of its prompt as run.
        seconds: of each step.
    """

    case: Case
    prompt_tokens: int
    seconds: Mapping[str, float]


def spent_by(measurement: Measurement) -> Spent | None:
    """Return what a measured case took; None if it has no result, or is from before steps were timed."""
    seconds = measurement.facts.get(STEP_SECONDS)
    if measurement.status != "ok" or not seconds:
        return None
    return Spent(case=measurement.case, prompt_tokens=measurement.prompt_tokens, seconds=seconds)


def expected_seconds(case: Case, step: str, spent: Sequence[Spent]) -> float | None:
    """Return about how long a step of `case` takes, from cases that were measured; None if none had it.

    Cases with the same variant are asked if there are any, first those with the same attention. Reading
    the prompt is taken to be proportional to its length.
    """
    known = [one for one in spent if step in one.seconds]
    for is_like in (
        lambda other: (other.variant, other.attention) == (case.variant, case.attention),
        lambda other: other.variant == case.variant,
    ):
        known = [one for one in known if is_like(one.case)] or known
    if not known:
        return None
    return fmean(one.seconds[step] * (_length_ratio(case, one) if step == "prompt" else 1) for one in known)


def _length_ratio(case: Case, spent: Spent) -> float:
    # 0 leaves the prompt as it is: its length is known only from a case that also did
    if not case.prompt_tokens or not spent.prompt_tokens:
        return 1.0
    return case.prompt_tokens / spent.prompt_tokens


def seconds_left(
    waiting: Sequence[Case],
    spent: Sequence[Spent],
    *,
    running: Case | None = None,
    step: str = "",
    step_seconds: float = 0.0,
    tokens: int = 0,
) -> float | None:
    """Return about how long the cases that remain take; None while a step has never been measured.

    Args:
        waiting: cases that have not started.
        spent: the cases that were measured.
        running: the case that runs.
        step: its current step.
        step_seconds: seconds in that step so far.
        tokens: tokens of its answer so far.
    """
    parts = [expected_seconds(case, name, spent) for case in waiting for name in steps_of(case)]
    if running is not None:
        steps = steps_of(running)
        parts += [expected_seconds(running, name, spent) for name in steps[steps.index(step) + 1 :]]
        parts.append(_left_in_step(running, step, step_seconds, tokens, spent))
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _left_in_step(
    case: Case, step: str, step_seconds: float, tokens: int, spent: Sequence[Spent]
) -> float | None:
    # the first token ended the step before
    if step == "answer" and tokens > 1:
        return step_seconds / (tokens - 1) * (case.max_new_tokens - tokens)
    expected = expected_seconds(case, step, spent)
    return None if expected is None else max(0.0, expected - step_seconds)
