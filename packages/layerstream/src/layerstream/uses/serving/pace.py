"""How fast a service is: tokens per second and seconds per sweep, in the last minute of work. No model."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic

_WINDOW_S = 60.0


class Pace:
    """Measures the last minute. Call it from one thread at a time."""

    def __init__(self, planned_sweep_s: float, clock: Callable[[], float] = monotonic) -> None:
        """Assume `planned_sweep_s` per sweep until two sweeps were measured."""
        self._earlier_sweep_s = planned_sweep_s
        self._clock = clock
        self._tokens: deque[tuple[float, int]] = deque()
        self._sweeps: deque[tuple[float, int]] = deque()

    def begin(self, sweeps: int) -> None:
        """Begin anew after a pause, in which no sweep ran; until there are new ones, the last ones count."""
        self._earlier_sweep_s = self.sweep_s
        self._tokens.clear()
        self._sweeps.clear()
        self._sweeps.append((self._clock(), sweeps))

    def record(self, tokens: int, sweeps: int) -> None:
        """Note new tokens, and how many sweeps there have been in all."""
        now = self._clock()
        self._tokens.append((now, tokens))
        if not self._sweeps or sweeps > self._sweeps[-1][1]:
            self._sweeps.append((now, sweeps))
        for readings in (self._tokens, self._sweeps):
            while len(readings) > 2 and readings[0][0] < now - _WINDOW_S:
                readings.popleft()

    @property
    def sweep_s(self) -> float:
        """Seconds per sweep."""
        if len(self._sweeps) < 2:
            return self._earlier_sweep_s
        (first_s, first), (last_s, last) = self._sweeps[0], self._sweeps[-1]
        return (last_s - first_s) / (last - first)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all answers together; 0 while nothing was measured."""
        if not self._tokens or not self._sweeps:
            return 0.0
        seconds = self._tokens[-1][0] - self._sweeps[0][0]
        return sum(count for _, count in self._tokens) / seconds if seconds > 0 else 0.0


def starts_s(free_s: Iterable[Iterable[float]], waiting: Iterable[tuple[float, int]]) -> list[float]:
    """Return in how many seconds each waiting request starts, if each takes the place of one that ends.

    Args:
        free_s: for each device, in how many seconds each of its places is free; one at least.
        waiting: how long each waiting request will take, and how many of the devices it may go to, counted
            from the first; in the order of the queue.
    """
    places = [sorted(each_s) for each_s in free_s]
    starts: list[float] = []
    for seconds, num_devices in waiting:
        earliest = min(places[:num_devices], key=lambda each_s: each_s[0])
        starts.append(earliest[0])
        heapq.heapreplace(earliest, starts[-1] + seconds)
    return starts
