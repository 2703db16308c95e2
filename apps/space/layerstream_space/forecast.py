"""How long a case's phases take: a first guess, then what this app has seen itself.

It has no clock and knows neither gradio nor processes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from layerstream_compare import Case

PHASES = ("starting", "load", "warm-up", "first-token", "decode", "quality")
"""The phases that take time, in their order. The libraries are loaded in `starting`."""

FIRST_GUESS: Mapping[str, float] = {
    "starting": 5.0,
    "load": 1.0,
    "warm-up": 1.0,
    "first-token": 0.5,
    "decode": 0.1,
    "quality": 3.0,
}
"""Seconds of each phase before anything was seen, for a model of 100 million parameters on a small machine;
`decode` is per token. Only a guess: the first column of a run corrects it."""

_SLOWEST, _FASTEST = 20.0, 0.2
_LEAST_SEEN_S = 1.0


@dataclass(slots=True)
class Forecast:
    """What each case is expected to take. Visitors share it, and it is safe to use from several threads."""

    _seen: dict[tuple[str, ...], dict[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, case: Case) -> dict[str, float]:
        """Return the seconds that each phase of `case` is expected to take."""
        with self._lock:
            seen = dict(self._seen.get(_kind(case), {}))
        return _scaled({**FIRST_GUESS, **seen}, case)

    def learn(self, case: Case, seconds: Mapping[str, float], num_tokens: int) -> None:
        """Remember what the phases of a case took.

        Args:
            case: the case, which has ended well.
            seconds: for each phase that it went through.
            num_tokens: length of its answer.
        """
        seen = {phase: value for phase, value in seconds.items() if phase in FIRST_GUESS}
        if "decode" in seen:
            seen["decode"] /= max(1, num_tokens)
        with self._lock:
            self._seen.setdefault(_kind(case), {}).update(seen)


def first_guess(case: Case) -> dict[str, float]:
    """Return the seconds that each phase of `case` takes, as far as anybody knows before the first run."""
    return _scaled(dict(FIRST_GUESS), case)


def _scaled(seconds: dict[str, float], case: Case) -> dict[str, float]:
    seconds["decode"] *= case.max_new_tokens
    if not case.warmup_tokens:
        seconds["warm-up"] = 0.0
    if not case.quality:
        seconds["quality"] = 0.0
    return seconds


def pace(seen_s: float, expected_s: float) -> float:
    """Return how many times slower than expected a run is going, from its phases so far."""
    if expected_s < _LEAST_SEEN_S and seen_s < _LEAST_SEEN_S:
        return 1.0
    return min(max(seen_s / max(expected_s, _LEAST_SEEN_S), _FASTEST), _SLOWEST)


def _kind(case: Case) -> tuple[str, ...]:
    """Return what cases with the same times have in common."""
    asked = (case.model, case.variant, case.attention, case.prompt_tokens, case.budget)
    return (*map(str, asked), str(case.prose), case.draft)
