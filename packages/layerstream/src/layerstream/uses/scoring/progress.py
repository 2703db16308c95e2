"""Where scoring stands, as numbers.

Layer: uses. Counts visits of units and ends of tasks; knows no terminal.
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
        done: requests that have their result.
        total: requests in all.
        sweep: the sweep under way, from 0; with several devices, the first one's.
        sweeps: sweeps in all.
        unit: moved units that the sweep has visited.
        units: moved units that it visits; 0 where nothing is moved.
        elapsed_s: seconds since the start.
        eta_s: seconds to the end at the rate so far; None while nothing is known.
    """

    done: int
    total: int
    sweep: int
    sweeps: int
    unit: int
    units: int
    elapsed_s: float
    eta_s: float | None


class ProgressCounter:
    """Follows sweeps through the units."""

    def __init__(
        self, *, total: int, weights: Sequence[int], units: int, tell: Callable[[ScoreProgress], object]
    ) -> None:
        """Start counting.

        Args:
            total: requests.
            weights: tokens of each sweep.
            units: moved units of one sweep.
            tell: is told after each unit, each task and each request; must be quick.
        """
        self._total, self._weights, self._units, self._tell = total, tuple(weights), units, tell
        self._done = self._unit = self._rides = self._most_rides = 0
        self._sweep = -1
        self._start_s = perf_counter()

    def start_sweep(self, num_rides: int) -> None:
        """Go to the next sweep, in which `num_rides` forwards share the sweep."""
        self._sweep += 1
        self._unit, self._rides, self._most_rides = 0, 0, num_rides

    def observe(self, span: Span) -> None:
        """Take one span in; fit to be a `Timeline` listener."""
        if span.activity is Activity.COMPUTE and span.replica == 0:
            self._unit = min(self._unit + 1, self._units)
            self._tell(self.state())

    def end_task(self) -> None:
        """Count a forward that has ended."""
        self._rides += 1
        self._tell(self.state())

    def end_request(self) -> None:
        """Count a request that has its result."""
        self._done += 1
        self._tell(self.state())

    def state(self) -> ScoreProgress:
        """Return where scoring stands now."""
        elapsed_s = perf_counter() - self._start_s
        here = max(
            self._unit / self._units if self._units else 0.0,
            self._rides / self._most_rides if self._most_rides else 0.0,
        )
        passed = sum(self._weights[: max(0, self._sweep)]) + (
            here * self._weights[self._sweep] if self._sweep >= 0 else 0.0
        )
        share = passed / max(1, sum(self._weights))
        return ScoreProgress(
            done=self._done,
            total=self._total,
            sweep=max(0, self._sweep),
            sweeps=len(self._weights),
            unit=self._unit,
            units=self._units,
            elapsed_s=elapsed_s,
            eta_s=0.0
            if self._done == self._total
            else elapsed_s * (1 - share) / share
            if share > 0
            else None,
        )
