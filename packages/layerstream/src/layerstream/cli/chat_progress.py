"""How far the answer of a chat is: when its first token may be expected, and then tokens per second. Pure."""

from __future__ import annotations

from ..spec.plans import SweepCost
from ..spec.sizes import format_rate, format_seconds
from .progress import ProgressState


class FirstTokenTimes:
    """Expects the time to a first token: from the plan, and from how long earlier answers took."""

    def __init__(self, cost: SweepCost, prompt_tokens: int) -> None:
        """Start with the plan's cost, in which the prompt has `prompt_tokens`."""
        self._cost, self._prompt_tokens = cost, prompt_tokens
        self._measured_share = 1.0

    def expect(self, prompt_tokens: int) -> float:
        """Return the seconds to the first token after a prompt of so many tokens."""
        return self._measured_share * self._planned(prompt_tokens)

    def measure(self, prompt_tokens: int, seconds: float) -> None:
        """Take note of how long a first token took."""
        planned_s = self._planned(prompt_tokens)
        if planned_s > 0:
            self._measured_share = seconds / planned_s

    def _planned(self, prompt_tokens: int) -> float:
        # a sweep takes its time for the weights; the planned prompt's takes more if it computes longer
        share = min(1.0, prompt_tokens / self._prompt_tokens)
        return max(self._cost.sweep_s, share * self._cost.prefill_s)


def first_token_eta_s(expected_s: float, elapsed_s: float, done_share: float) -> float:
    """Return the seconds left until the first token.

    Args:
        expected_s: what was expected before.
        elapsed_s: seconds since the beginning.
        done_share: how much of the sweep is done, from 0 to 1. Its own speed counts the more, the more is
            done: the first units of a sweep may have been read before it.
    """
    if done_share <= 0:
        return max(0.0, expected_s - elapsed_s)
    return (1 - done_share) * ((1 - done_share) * expected_s + elapsed_s)


def format_waiting(state: ProgressState, eta_s: float) -> str:
    """Return the line that is shown until the first token."""
    parts = [f"first token in about {format_seconds(eta_s)}" if eta_s >= 1 else "first token any moment"]
    if state.sweep is not None:
        parts.append(f"{_done_share(state):.0%} of the weights")
    return " · ".join([*parts, *_rate(state)])


def format_answering(state: ProgressState, answering_s: float) -> str:
    """Return the line that is shown from the first token on, `answering_s` seconds ago."""
    parts = [f"{state.tokens}/{state.max_new_tokens} tokens"]
    if state.tokens > 1 and answering_s > 0:
        parts.insert(0, format_tokens_per_s((state.tokens - 1) / answering_s))
    return " · ".join([*parts, *_rate(state)])


def format_tokens_per_s(tokens_per_s: float) -> str:
    """Return a speed as text: `"12 tokens/s"`, `"0.041 tokens/s"`."""
    return f"{tokens_per_s:.0f} tokens/s" if tokens_per_s >= 10 else f"{tokens_per_s:.2g} tokens/s"


def waiting_share(state: ProgressState) -> float:
    """Return how much of the prompt's sweep is done, from 0 to 1."""
    return 0.0 if state.sweep is None else 1.0 if state.sweep else _done_share(state)


def _done_share(state: ProgressState) -> float:
    return (state.unit_index + 1) / max(1, state.num_units)


def _rate(state: ProgressState) -> list[str]:
    return [format_rate(state.bytes_per_s)] if state.bytes_per_s > 0 else []
