"""Where scoring stands, as numbers.

Layer: uses. Counts visits of units and ends of rides; knows no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from ...spec.timeline import Activity, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreProgress:
    """Where scoring stands at one moment.

    Attributes:
        done: questions that have their result.
        total: questions in all.
        wave: the sweep under way, from 0; with several devices, the first one's.
        waves: sweeps in all.
        unit: moved units that the sweep has visited.
        units: moved units that it visits; 0 where nothing is moved.
        elapsed_s: seconds since the start.
        eta_s: seconds to the end at the rate so far; None while nothing is known.
    """

    done: int
    total: int
    wave: int
    waves: int
    unit: int
    units: int
    elapsed_s: float
    eta_s: float | None


class ProgressCounter:
    """Follows waves through the units."""

    def __init__(self, *, total: int, weights: Sequence[int], units: int, tell: Callable[[ScoreProgress], object]) -> None:
        """Start counting.

        Args:
            total: questions.
            weights: tokens of each wave.
            units: moved units of one sweep.
            tell: is told after each unit, each ride and each question; must be quick.
        """
        self._total, self._weights, self._units, self._tell = total, tuple(weights), units, tell
        self._done = self._unit = self._rides = self._most_rides = 0
        self._wave = -1
        self._start_s = perf_counter()

    def start_wave(self, num_rides: int) -> None:
        """Go to the next wave, in which `num_rides` forwards share the sweep."""
        self._wave += 1
        self._unit, self._rides, self._most_rides = 0, 0, num_rides

    def observe(self, span: Span) -> None:
        """Take one span in; fit to be a `Timeline` listener."""
        if span.activity is Activity.COMPUTE and span.lane == 0:
            self._unit = min(self._unit + 1, self._units)
            self._tell(self.state())

    def end_ride(self) -> None:
        """Count a forward that has ended."""
        self._rides += 1
        self._tell(self.state())

    def end_question(self) -> None:
        """Count a question that has its result."""
        self._done += 1
        self._tell(self.state())

    def state(self) -> ScoreProgress:
        """Return where scoring stands now."""
        elapsed_s = perf_counter() - self._start_s
        here = max(self._unit / self._units if self._units else 0.0, self._rides / self._most_rides if self._most_rides else 0.0)
        passed = sum(self._weights[: max(0, self._wave)]) + (here * self._weights[self._wave] if self._wave >= 0 else 0.0)
        share = passed / max(1, sum(self._weights))
        return ScoreProgress(
            done=self._done,
            total=self._total,
            wave=max(0, self._wave),
            waves=len(self._weights),
            unit=self._unit,
            units=self._units,
            elapsed_s=elapsed_s,
            eta_s=0.0 if self._done == self._total else elapsed_s * (1 - share) / share if share > 0 else None,
        )
