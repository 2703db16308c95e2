"""Show running cases in a terminal: the current case and step, the time left, and the text as it arrives.

It draws on events and once per second; drawing more often would take CPU time from the measurement.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from layerstream import format_seconds

from .case import Case
from .events import Event
from .measurement import Measurement
from .reports.metrics import BY_KEY
from .steps import DOING, STEP_SECONDS, Spent, seconds_left, spent_by, step_of, steps_of

_DRAWS_PER_S = 1
_SHOWN_CHARACTERS = 300
_SHOWN_METRICS = ("first_token_s", "inter_token_median_s")
_HELD, _HELD_APART = ("held_bytes",), ("device_held_bytes", "host_held_bytes")


class LiveView:
    """State of a running experiment, as a rich renderable.

    Attributes:
        measurements: of the cases that ended.
    """

    def __init__(self, cases: Sequence[Case], clock: Callable[[], float] = time.monotonic) -> None:
        """Start with none of `cases` finished.

        Args:
            cases: of the experiment.
            clock: returns the time in seconds.
        """
        self.measurements: list[Measurement] = []
        self._clock = clock
        self._num_cases = len(cases)
        self._waiting = {case.key: case for case in cases}
        self._spent: list[Spent] = []
        self._reasons: dict[str, str] = {}
        self._not_started: list[str] = []
        self._took_s: dict[str, float] = {}
        self._text, self._num_tokens = "", 0
        self._started_s = clock()
        self._case: Case | None = None
        self._begin("start")

    def _begin(self, step: str) -> None:
        self._step, self._step_since_s = step, self._clock()

    def update(self, event: Event) -> list[str]:
        """Update from `event`; return the lines to print if it ends a case."""
        if event.kind == "started":
            self._case, self._text, self._num_tokens = event.case, "", 0
            self._waiting.pop(event.case.key, None)
        elif event.kind == "token":
            self._text += str(event.data.get("text", ""))
            self._num_tokens += 1
        if step := step_of(event):
            self._begin(step)
        return [] if event.measurement is None else self._ended(event, event.measurement)

    def _ended(self, event: Event, measurement: Measurement) -> list[str]:
        was_started = self._case is not None
        self._case = None
        self._waiting.pop(event.case.key, None)
        self.measurements.append(measurement)
        if spent := spent_by(measurement):
            self._spent.append(spent)
        if event.kind == "finished" and not was_started:
            self._not_started.append(event.case.label)
            return []
        lines = [
            f"[{len(self.measurements)}/{self._num_cases}] {event.case.label}: {self._outcome(measurement)}"
        ]
        if event.kind == "skipped":
            return [f"{lines[0]} (already measured)"]
        if seconds := measurement.facts.get(STEP_SECONDS):
            for step in seconds:
                self._took_s[step] = self._took_s.get(step, 0.0) + seconds[step]
            lines.append(f"    took {in_steps(seconds)}{self._after_this()}")
        return lines

    def _outcome(self, measurement: Measurement) -> str:
        label, reason = measurement.case.label, measurement.reason
        if measurement.status != "ok":
            first = self._reasons.setdefault(reason, label)
            return f"{measurement.status}: {reason if first == label else f'the same reason as {first}'}"
        has_device = measurement.memory is not None and measurement.memory.has_device
        keys = (*(_HELD_APART if has_device else _HELD), *_SHOWN_METRICS)
        values = [(BY_KEY[key], BY_KEY[key].value(measurement)) for key in keys]
        return ", ".join(
            f"{metric.title} {metric.show(value)}" for metric, value in values if value is not None
        )

    def _after_this(self) -> str:
        left_s = seconds_left(tuple(self._waiting.values()), self._spent)
        return f"; {about(left_s)} left" if self._waiting and left_s is not None else ""

    def last_lines(self) -> list[str]:
        """Return the lines to print at the end: what was not started, and how long everything took."""
        lines = []
        if self._not_started:
            lines.append(f"not started, because they would fail the same way: {', '.join(self._not_started)}")
        if len(self.measurements) > 1 and self._took_s:
            lines.append(f"in all {_short(self._clock() - self._started_s)}: {_parts(self._took_s)}")
        return lines

    def __rich__(self) -> RenderableType:
        """Return the running case: its step, the time left and the end of its text."""
        if self._case is None:
            return Text("")
        steps = steps_of(self._case)
        step_s = self._clock() - self._step_since_s
        head = (
            f"case {len(self.measurements) + 1} of {self._num_cases}, {self._case.label}, step "
            f"{steps.index(self._step) + 1} of {len(steps)}: {DOING[self._step]}{self._token()}, "
            f"{_short(step_s)} so far"
        )
        left_s = seconds_left(
            tuple(self._waiting.values()),
            self._spent,
            running=self._case,
            step=self._step,
            step_seconds=step_s,
            tokens=self._num_tokens,
        )
        left = "time left: known once a case is measured" if left_s is None else f"{about(left_s)} left"
        return Group(Text(head, style="bold"), Text(left), Text(self._text[-_SHOWN_CHARACTERS:], style="dim"))

    def _token(self) -> str:
        if self._step != "answer" or self._case is None:
            return ""
        return f", token {self._num_tokens} of at most {self._case.max_new_tokens}"


def about(seconds: float) -> str:
    """Return an estimate as text, no more exact than it can be: `"about 25 s"`, `"about 4 min"`."""
    if seconds < 10:
        return "less than 10 s"
    if seconds <= 90:
        return f"about {5 * math.ceil(seconds / 5)} s"
    if seconds <= 90 * 60:
        return f"about {math.ceil(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def in_steps(seconds: Mapping[str, float]) -> str:
    """Return the seconds of steps as text, their sum first: `"41 s: start 6 s, load 3 s"`."""
    return f"{_short(sum(seconds.values()))}: {_parts(seconds)}"


def _parts(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{step} {_short(seconds[step])}" for step in DOING if step in seconds)


def _short(seconds: float) -> str:
    # a second is as exact as anybody needs here
    return f"{round(seconds)} s" if seconds < 59.5 else format_seconds(seconds)


def follow(
    events: Iterable[Event], view: LiveView, console: Console, announcement: Sequence[str] = ()
) -> None:
    """Consume `events` and show progress; the measurements are in the view, also after an interrupt.

    Args:
        events: of an experiment.
        view: what is shown.
        console: where to draw; if it is not a terminal, it gets a line or two per case.
        announcement: lines to print before the first case starts.
    """
    unsaid = list(announcement)
    with Live(
        view,
        console=console,
        refresh_per_second=_DRAWS_PER_S,
        transient=True,
        auto_refresh=console.is_terminal,
    ) as live:
        for event in events:
            if event.kind == "started":
                for line in unsaid:
                    _print(live.console, line)
                unsaid.clear()
            for line in view.update(event):
                _print(live.console, line)
    for line in view.last_lines():
        _print(console, line)


def _print(console: Console, line: str) -> None:
    # a terminal breaks between words; in a file, a long reason stays one line that can be searched
    console.print(Text(line), soft_wrap=not console.is_terminal)
