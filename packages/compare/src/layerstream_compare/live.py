"""What a terminal shows while cases run: which one, in which phase, and its words as they come.

It draws when something happens and once a second: drawing more often would take time from what is being measured.
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
_SHOWN_METRICS = ("held_bytes", "first_token_s", "inter_token_median_s")


class LiveView:
    """The state of a running experiment, as something rich can draw."""

    def __init__(self, num_cases: int) -> None:
        """Start before the first of `num_cases`."""
        self._num_cases = num_cases
        self._num_done = 0
        self._label = ""
        self._phase = "starting"
        self._words = ""
        self._since = time.monotonic()

    def take(self, event: Event) -> str:
        """Take in an event; return the line that stays on the screen, where it ends a case."""
        if event.measurement is not None:
            self._num_done += 1
            return self._line(event, event.measurement)
        if event.kind == "started":
            self._label, self._phase, self._words, self._since = (
                event.case.label,
                "starting",
                "",
                time.monotonic(),
            )
        elif event.kind == "phase":
            self._phase = str(event.data.get("phase", ""))
        elif event.kind == "token":
            self._words += str(event.data.get("text", ""))
        return ""

    def _line(self, event: Event, measurement: Measurement) -> str:
        head = f"[{self._num_done}/{self._num_cases}] {event.case.label}"
        if measurement.status != "ok":
            return f"{head}: {measurement.status}: {measurement.reason}"
        found = [(BY_KEY[key], BY_KEY[key].value(measurement)) for key in _SHOWN_METRICS]
        figures = ", ".join(
            f"{metric.title} {metric.show(value)}" for metric, value in found if value is not None
        )
        return f"{head}: {figures}" + (" (there already)" if event.kind == "skipped" else "")

    def __rich__(self) -> RenderableType:
        """Return the running case: its name, phase, seconds and latest words."""
        if self._num_done >= self._num_cases or not self._label:
            return Text("")
        elapsed = f"{time.monotonic() - self._since:.0f} s"
        head = Text(
            f"[{self._num_done + 1}/{self._num_cases}] {self._label}: {self._phase}, {elapsed}", style="bold"
        )
        return Group(head, Text(self._words[-_SHOWN_CHARACTERS:], style="dim"))


def follow(events: Iterable[Event], *, num_cases: int, console: Console) -> list[Measurement]:
    """Consume `events` and return the measurements; show them on the way where `console` is a terminal, else a line a case.

    Args:
        events: of an experiment.
        num_cases: how many there will be.
        console: where to draw.
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
            line = view.take(event)
            if line:
                # a reason is one line, however long: it can be searched for and copied
                live.console.print(Text(line), soft_wrap=True)
            if event.measurement is not None:
                measurements.append(event.measurement)
    return measurements
