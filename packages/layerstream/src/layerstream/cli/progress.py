"""The progress of a run, as numbers and as one line of text.

It follows spans and counts tokens. It does not draw and starts no thread: the drawing side calls `state()`.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from ..spec.sizes import format_rate, format_seconds
from ..spec.timeline import Activity, Span

_BAR_CELLS = 12
_OBSERVED_SWEEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressState:
    """The progress of a run at one moment.

    Attributes:
        sweep: the current sweep, from 0; None before the first.
        unit_index: the last unit reached, from 0.
        num_units: units that a sweep visits.
        tokens: tokens generated so far.
        max_new_tokens: the maximum number of new tokens.
        bytes_per_s: the read rate over the last seconds; 0 if nothing was read.
        sweep_s: seconds for one more token: observed, or predicted before anything was observed.
        eta_s: seconds left if the answer gets as long as it may; None until there is an estimate.
    """

    sweep: int | None
    unit_index: int
    num_units: int
    tokens: int
    max_new_tokens: int
    bytes_per_s: float
    sweep_s: float
    eta_s: float | None


class ProgressTracker:
    """Turns spans and tokens into a `ProgressState`. Every thread may call it."""

    def __init__(
        self,
        *,
        num_units: int,
        max_new_tokens: int,
        predicted_sweep_s: float = 0.0,
        predicted_prefill_s: float = 0.0,
        window_s: float = 3.0,
    ) -> None:
        """Start with the plan's predictions.

        Args:
            num_units: units that a sweep visits.
            max_new_tokens: the maximum number of new tokens.
            predicted_sweep_s: the plan's seconds for one token; used until a sweep has been observed.
            predicted_prefill_s: the plan's seconds for the prompt.
            window_s: the read rate is averaged over this many seconds.
        """
        self._num_units = num_units
        self._max_new_tokens = max_new_tokens
        self._predicted_sweep_s = predicted_sweep_s
        self._predicted_prefill_s = predicted_prefill_s
        self._window_s = window_s
        self._lock = threading.Lock()
        self._reads: deque[tuple[float, float, int]] = deque(maxlen=4096)
        self._sweep_starts: deque[float] = deque(maxlen=_OBSERVED_SWEEPS + 1)
        self._first_sweep = 0
        self._sweep: int | None = None
        self._unit_index = 0
        self._tokens = 0

    def observe(self, span: Span) -> None:
        """Follow one span; subscribe this to a `Timeline`."""
        with self._lock:
            if span.activity is Activity.READ:
                self._reads.append((span.start_s, span.end_s, span.num_bytes))
            elif span.activity is Activity.COMPUTE:
                self._follow_compute(span)

    def _follow_compute(self, span: Span) -> None:
        if self._sweep is None:
            self._first_sweep = span.sweep
        if self._sweep is None or span.sweep > self._sweep:
            self._sweep = span.sweep
            self._unit_index = span.unit_index
            self._sweep_starts.append(span.start_s)
        elif span.sweep == self._sweep:
            self._unit_index = max(self._unit_index, span.unit_index)

    def count_tokens(self, num_tokens: int = 1) -> None:
        """Count new tokens."""
        with self._lock:
            self._tokens += num_tokens

    def state(self, now_s: float) -> ProgressState:
        """Return the progress at `now_s` (`time.perf_counter()` seconds)."""
        with self._lock:
            sweep_s = self._sweep_seconds()
            return ProgressState(
                sweep=None if self._sweep is None else self._sweep - self._first_sweep,
                unit_index=self._unit_index,
                num_units=self._num_units,
                tokens=self._tokens,
                max_new_tokens=self._max_new_tokens,
                bytes_per_s=self._read_rate(now_s),
                sweep_s=sweep_s,
                eta_s=self._remaining_seconds(now_s, sweep_s),
            )

    def _read_rate(self, now_s: float) -> float:
        since_s = now_s - self._window_s
        moved = 0.0
        first_s = now_s
        for start_s, end_s, num_bytes in self._reads:
            if end_s <= since_s or end_s <= start_s:
                continue
            # if a read began before the window, count only the share inside it
            moved += num_bytes * (end_s - max(start_s, since_s)) / (end_s - start_s)
            first_s = min(first_s, max(start_s, since_s))
        return moved / (now_s - first_s) if now_s > first_s else 0.0

    def _sweep_seconds(self) -> float:
        starts = list(self._sweep_starts)
        # the first sweep is the prompt's: it is longer than those that make one token each
        observed = [later - earlier for earlier, later in pairwise(starts)]
        if self._sweep is not None and self._sweep - self._first_sweep < len(starts):
            observed = observed[1:]
        return median(observed) if observed else self._predicted_sweep_s

    def _remaining_seconds(self, now_s: float, sweep_s: float) -> float | None:
        tokens_left = self._max_new_tokens - self._tokens
        if tokens_left <= 0:
            return 0.0
        if sweep_s <= 0:
            return None
        if self._sweep is None:
            return self._predicted_prefill_s + (tokens_left - 1) * sweep_s
        in_prefill = self._sweep == self._first_sweep and self._predicted_prefill_s > 0
        this_sweep_s = self._predicted_prefill_s if in_prefill else sweep_s
        later_sweeps = max(0.0, tokens_left / self._tokens_per_sweep() - 1)
        return max(0.0, this_sweep_s - (now_s - self._sweep_starts[-1])) + later_sweeps * sweep_s

    def _tokens_per_sweep(self) -> float:
        """Return how many tokens a sweep after the prompt's has given: with a draft, more than one."""
        sweeps = 0 if self._sweep is None else self._sweep - self._first_sweep
        return max(1.0, (self._tokens - 1) / sweeps) if sweeps > 1 else 1.0


def format_progress(state: ProgressState, noun: str = "block") -> str:
    """Return `state` as one line: bar, sweep, unit (called `noun`), rate, tokens and the time left."""
    if state.sweep is None:
        return "waiting for the first weights"
    done = state.unit_index + 1
    filled = round(_BAR_CELLS * done / max(1, state.num_units))
    name = "prompt" if state.sweep == 0 else f"sweep {state.sweep}"
    parts = [
        f"{'━' * filled}{'╌' * (_BAR_CELLS - filled)} {name}",
        f"{noun} {done}/{state.num_units}",
        f"{state.tokens}/{state.max_new_tokens} tokens",
    ]
    if state.bytes_per_s > 0:
        parts.insert(2, format_rate(state.bytes_per_s))
    if state.eta_s is not None:
        parts.append(f"about {format_seconds(state.eta_s)} left" if state.eta_s >= 1 else "almost done")
    return " · ".join(parts)
