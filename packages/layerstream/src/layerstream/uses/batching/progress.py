"""The progress of a batch, as numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from ..runner import ProgressClock


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """The progress of a batch at one moment.

    Attributes:
        done: requests that have finished.
        total: all requests.
        tokens: tokens generated so far, including padding after an early end.
        most_tokens: the largest number of tokens that there can be.
        sweeps: sweeps so far.
        elapsed_s: seconds since the start.
        eta_s: an upper bound on the seconds left, at the rate so far; None until there is an estimate.
    """

    done: int
    total: int
    tokens: int
    most_tokens: int
    sweeps: int
    elapsed_s: float
    eta_s: float | None


class BatchCounter:
    """Counts tokens and finished requests of all micro-batches. Call it from one thread at a time."""

    def __init__(
        self,
        total: int,
        most_tokens: int,
        sweeps: Callable[[], int],
        on_progress: Callable[[BatchProgress], object],
    ) -> None:
        """Start counting.

        Args:
            total: the number of requests.
            most_tokens: the most tokens that all requests can take together.
            sweeps: returns the model's sweeps so far.
            on_progress: called after every step of a micro-batch and every finished request.
        """
        self._done, self._total, self._tokens, self._most_tokens = 0, total, 0, most_tokens
        self._sweeps, self._first_sweep, self._on_progress = sweeps, sweeps(), on_progress
        self._clock = ProgressClock()

    def add_tokens(self, count: int) -> None:
        """Count new tokens."""
        self._tokens += count
        self._on_progress(self.state())

    def end_request(self, unused_tokens: int) -> None:
        """Count a finished request that needed `unused_tokens` fewer than its maximum."""
        self._done += 1
        self._most_tokens -= unused_tokens
        self._on_progress(self.state())

    def state(self) -> BatchProgress:
        """Return the current progress."""
        share = self._tokens / max(self._tokens, self._most_tokens, 1)
        elapsed_s, eta_s = self._clock.elapsed_and_eta(share, is_over=self._done == self._total)
        return BatchProgress(
            done=self._done,
            total=self._total,
            tokens=self._tokens,
            most_tokens=self._most_tokens,
            sweeps=self._sweeps() - self._first_sweep,
            elapsed_s=elapsed_s,
            eta_s=eta_s,
        )


class CountTokens(StoppingCriteria):
    """A stopping criterion that never stops; it reports how many tokens each step has made."""

    def __init__(self, prompt_tokens: int, rows: int, on_tokens: Callable[[int], object]) -> None:
        """Count tokens after the first `prompt_tokens`; the tensor has `rows` requests (without beams)."""
        self._length, self._rows, self._on_tokens = prompt_tokens, rows, on_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return False for every row of `input_ids` (rows, tokens)."""
        self._on_tokens(max(0, input_ids.shape[1] - self._length) * self._rows)
        self._length = max(self._length, input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
