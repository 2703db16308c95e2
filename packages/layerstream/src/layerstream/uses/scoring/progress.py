"""The progress of scoring, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...spec.timeline import Activity, Span
from ..runner import ProgressClock


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringProgress:
    """The progress of scoring at one moment.

    Attributes:
        done: requests that have their result.
        total: all requests.
        sweep: the current sweep, from 0; with several devices, the first one's.
        sweeps: all sweeps.
        unit: streamed units that the sweep has visited.
        units: streamed units that the sweep visits; 0 if nothing is streamed.
        elapsed_s: seconds since the start.
        eta_s: seconds left at the rate so far; None until there is an estimate.
    """

    done: int
    total: int
    sweep: int
    sweeps: int
    unit: int
    units: int
    elapsed_s: float
    eta_s: float | None


class ScoringCounter:
    """Follows the sweeps through the units. Call it from one thread at a time."""

    def __init__(
        self,
        *,
        total: int,
        sweep_tokens: Sequence[int],
        units: int,
        on_progress: Callable[[ScoringProgress], object],
    ) -> None:
        """Start counting.

        Args:
            total: the number of requests.
            sweep_tokens: the tokens of each sweep; they weigh the sweeps in the estimate of the time left.
            units: streamed units of one sweep.
            on_progress: called after each unit, each task and each request; must be quick.
        """
        self._total, self._sweep_tokens, self._units = total, tuple(sweep_tokens), units
        self._on_progress = on_progress
        self._done = self._unit = self._tasks_done = self._num_tasks = 0
        self._sweep = -1
        self._clock = ProgressClock()

    def start_sweep(self, num_tasks: int) -> None:
        """Go to the next sweep, which `num_tasks` forwards share."""
        self._sweep += 1
        self._unit, self._tasks_done, self._num_tasks = 0, 0, num_tasks

    def observe(self, span: Span) -> None:
        """Count a visited unit; subscribe this to a `Timeline`."""
        if span.activity is Activity.COMPUTE and span.replica == 0:
            self._unit = min(self._unit + 1, self._units)
            self._on_progress(self.state())

    def end_task(self) -> None:
        """Count a finished forward."""
        self._tasks_done += 1
        self._on_progress(self.state())

    def end_request(self) -> None:
        """Count a request that has its result."""
        self._done += 1
        self._on_progress(self.state())

    def state(self) -> ScoringProgress:
        """Return the current progress."""
        elapsed_s, eta_s = self._clock.elapsed_and_eta(self._share_done(), is_over=self._done == self._total)
        return ScoringProgress(
            done=self._done,
            total=self._total,
            sweep=max(0, self._sweep),
            sweeps=len(self._sweep_tokens),
            unit=self._unit,
            units=self._units,
            elapsed_s=elapsed_s,
            eta_s=eta_s,
        )

    def _share_done(self) -> float:
        if self._sweep < 0:
            return 0.0
        by_units = self._unit / self._units if self._units else 0.0
        by_tasks = self._tasks_done / self._num_tasks if self._num_tasks else 0.0
        before = sum(self._sweep_tokens[: self._sweep])
        now = max(by_units, by_tasks) * self._sweep_tokens[self._sweep]
        return (before + now) / max(1, sum(self._sweep_tokens))
