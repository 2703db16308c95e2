"""Show running cases in a terminal: the current case, its phase and its text as it arrives.

It draws on events and once per second; drawing more often would take CPU time from the measurement.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from .events import Event
from .measurement import Measurement
from .reports.metrics import BY_KEY

_DRAWS_PER_S = 1
_SHOWN_CHARACTERS = 300
_SHOWN_METRICS = ("first_token_s", "inter_token_median_s")
_HELD, _HELD_APART = ("held_bytes",), ("device_held_bytes", "host_held_bytes")


class LiveView:
    """State of a running experiment, as a rich renderable."""

    def __init__(self, num_cases: int) -> None:
        """Start with none of `num_cases` finished."""
        self._num_cases = num_cases
        self._num_done = 0
        self._label = ""
        self._phase = "starting"
        self._text = ""
        self._since = time.monotonic()

    def update(self, event: Event) -> str:
        """Update from `event`; return the summary line if it ends a case, else an empty string."""
        if event.measurement is not None:
            self._num_done += 1
            return self._line(event, event.measurement)
        if event.kind == "started":
            self._label, self._phase, self._text = event.case.label, "starting", ""
            self._since = time.monotonic()
        elif event.kind == "phase":
            self._phase = str(event.data.get("phase", ""))
        elif event.kind == "token":
            self._text += str(event.data.get("text", ""))
        return ""

    def _line(self, event: Event, measurement: Measurement) -> str:
        head = f"[{self._num_done}/{self._num_cases}] {event.case.label}"
        if measurement.status != "ok":
            return f"{head}: {measurement.status}: {measurement.reason}"
        has_device = measurement.memory is not None and measurement.memory.has_device
        keys = (*(_HELD_APART if has_device else _HELD), *_SHOWN_METRICS)
        values = [(BY_KEY[key], BY_KEY[key].value(measurement)) for key in keys]
        figures = ", ".join(
            f"{metric.title} {metric.show(value)}" for metric, value in values if value is not None
        )
        return f"{head}: {figures}" + (" (already measured)" if event.kind == "skipped" else "")

    def __rich__(self) -> RenderableType:
        """Return the running case: label, phase, elapsed seconds and the end of its text."""
        if self._num_done >= self._num_cases or not self._label:
            return Text("")
        elapsed = f"{time.monotonic() - self._since:.0f} s"
        head = Text(
            f"[{self._num_done + 1}/{self._num_cases}] {self._label}: {self._phase}, {elapsed}", style="bold"
        )
        return Group(head, Text(self._text[-_SHOWN_CHARACTERS:], style="dim"))


def follow(events: Iterable[Event], *, num_cases: int, console: Console) -> list[Measurement]:
    """Consume `events`, show progress and return the measurements.

    Args:
        events: of an experiment.
        num_cases: number of cases in the experiment.
        console: where to draw; if it is not a terminal, it gets one line per case.
    """
    view = LiveView(num_cases)
    measurements = []
    with Live(
        view,
        console=console,
        refresh_per_second=_DRAWS_PER_S,
        transient=True,
        auto_refresh=console.is_terminal,
    ) as live:
        for event in events:
            line = view.update(event)
            if line:
                # no wrapping: a long reason stays one line that can be searched and copied
                live.console.print(Text(line), soft_wrap=True)
            if event.measurement is not None:
                measurements.append(event.measurement)
    return measurements
