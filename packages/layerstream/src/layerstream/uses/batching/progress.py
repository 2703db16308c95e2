"""Where a batch stands, as numbers.

Layer: uses. Counts tokens as they come; knows no terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import StoppingCriteria


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """Where a batch stands at one moment.

    Attributes:
        done: requests that have ended.
        total: requests in all.
        tokens: tokens generated so far, padding behind an early end included.
        most_tokens: tokens at most.
        sweeps: sweeps so far.
        elapsed_s: seconds since the first.
        eta_s: seconds to the end at most, at the rate so far; None while nothing is known.
    """

    done: int
    total: int
    tokens: int
    most_tokens: int
    sweeps: int
    elapsed_s: float
    eta_s: float | None


class ProgressCounter:
    """Adds up what every micro-batch has made. Only the holder of the baton calls it."""

    def __init__(
        self, total: int, most_tokens: int, sweeps: Callable[[], int], tell: Callable[[BatchProgress], object]
    ) -> None:
        """Start counting.

        Args:
            total: requests.
            most_tokens: tokens at most, all requests together.
            sweeps: returns the sweeps of the model so far.
            tell: is told after every token of a micro-batch and every end of a request.
        """
        self._done, self._total, self._tokens, self._most_tokens = 0, total, 0, most_tokens
        self._sweeps, self._first_sweep, self._tell = sweeps, sweeps(), tell
        self._start_s = perf_counter()

    def add_tokens(self, count: int) -> None:
        """Count tokens that have come."""
        self._tokens += count
        self._tell(self.state())

    def end_request(self, tokens_never_made: int) -> None:
        """Count a request that has ended, and leave out the tokens that it did not need."""
        self._done += 1
        self._most_tokens -= tokens_never_made
        self._tell(self.state())

    def state(self) -> BatchProgress:
        """Return where the batch stands now."""
        elapsed_s = perf_counter() - self._start_s
        left = max(0, self._most_tokens - self._tokens)
        return BatchProgress(
            done=self._done,
            total=self._total,
            tokens=self._tokens,
            most_tokens=self._most_tokens,
            sweeps=self._sweeps() - self._first_sweep,
            elapsed_s=elapsed_s,
            eta_s=0.0
            if self._done == self._total
            else elapsed_s * left / self._tokens
            if self._tokens
            else None,
        )


class CountTokens(StoppingCriteria):
    """Never stops; tells how many tokens each step has made."""

    def __init__(self, prompt_tokens: int, rows: int, tell: Callable[[int], object]) -> None:
        """Count beyond `prompt_tokens`; `rows` requests share the tensor, beams not counted."""
        self._length, self._rows, self._tell = prompt_tokens, rows, tell

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return False for every row of `input_ids` (rows, tokens)."""
        self._tell(max(0, input_ids.shape[1] - self._length) * self._rows)
        self._length = max(self._length, input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
