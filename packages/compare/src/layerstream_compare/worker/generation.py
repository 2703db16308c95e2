"""Run one greedy generation and time every token. Runs in the worker; it does not know variants."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from ..variants.loaded import Loaded
from ..variants.prompts import Prompt

OnToken = Callable[[int, int], None]
"""Called with a new token's index and id; the time it takes is not counted."""


class TokenClock(BaseStreamer):
    """Records when each token is ready, with the device synchronized. Callbacks are not counted.

    Attributes:
        token_ids: the new tokens.
        intervals_s: seconds from the start to the first token, then from token to token. Tokens that arrive
            together share their seconds evenly.
    """

    def __init__(self, device: torch.device, on_token: OnToken, take_overhead_s: Callable[[], float]) -> None:
        """Prepare; `start` starts the clock.

        Args:
            device: the device to synchronize.
            on_token: called with each token.
            take_overhead_s: returns the seconds spent on measuring since its last call.
        """
        self.token_ids: list[int] = []
        self.intervals_s: list[float] = []
        self._device = device
        self._on_token = on_token
        self._take_overhead_s = take_overhead_s
        self._expects_prompt = True
        self._since = 0.0

    def start(self) -> None:
        """Start the clock."""
        synchronize(self._device)
        self._since = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Skip the prompt (the first call), then record each new token."""
        if self._expects_prompt:
            self._expects_prompt = False
            return
        synchronize(self._device)
        seconds = time.perf_counter() - self._since - self._take_overhead_s()
        tokens = value.flatten().tolist()
        self.intervals_s += [seconds / len(tokens)] * len(tokens)
        for token in tokens:
            self.token_ids.append(token)
            self._on_token(len(self.token_ids) - 1, token)
        self._since = time.perf_counter()

    def end(self) -> None:
        """Do nothing: `BaseStreamer` requires this method."""


class MarginRecorder(LogitsProcessor):
    """Records the margin p1 - p2 at each generated token, and the time that takes.

    A draft's logits are processed too, always before the model's own at the same position: the last margin of
    a position counts.
    """

    def __init__(self) -> None:
        """Start with no tokens."""
        self._margins: dict[int, torch.Tensor] = {}
        self._seconds = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Record the margin of `scores`, shape [1, vocabulary], and return them unchanged."""
        start = time.perf_counter()
        top = (scores.topk(2, dim=-1).values - scores.logsumexp(-1, keepdim=True)).exp()
        self._margins[input_ids.shape[1]] = top[0, 0] - top[0, 1]
        self._seconds += time.perf_counter() - start
        return scores

    def margins(self, num_tokens: int) -> tuple[float, ...]:
        """Return the margin of each of the first `num_tokens` new tokens."""
        positions = sorted(self._margins)[:num_tokens]
        return tuple(float(self._margins[position]) for position in positions)

    def take_seconds(self) -> float:
        """Return the seconds spent in this processor since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The result of one generation.

    Attributes:
        token_ids: the new tokens.
        intervals_s: seconds to the first token, then between tokens.
        margins: p1 - p2 at each token.
    """

    token_ids: tuple[int, ...]
    intervals_s: tuple[float, ...]
    margins: tuple[float, ...]

    @property
    def first_token_s(self) -> float:
        """Seconds from the call to the first token."""
        return self.intervals_s[0]

    @property
    def inter_token_s(self) -> tuple[float, ...]:
        """Seconds between tokens after the first."""
        return self.intervals_s[1:]

    @property
    def median_s(self) -> float:
        """Median time between tokens; 0 if there is only one token."""
        return statistics.median(self.inter_token_s) if self.inter_token_s else 0.0

    @property
    def p95_s(self) -> float:
        """95th percentile of the time between tokens, interpolated; 0 if there is only one token."""
        if len(self.inter_token_s) < 2:
            return self.median_s
        return statistics.quantiles(self.inter_token_s, n=20, method="inclusive")[-1]

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first divided by the seconds between them; 0 if there is only one token."""
        seconds = sum(self.inter_token_s)
        return len(self.inter_token_s) / seconds if seconds else 0.0


def generate_greedily(loaded: Loaded, prompt: Prompt, max_new_tokens: int, on_token: OnToken) -> Generated:
    """Generate greedily and time every token.

    Args:
        loaded: the variant.
        prompt: the prompt.
        max_new_tokens: maximum number of new tokens; the model may stop earlier.
        on_token: called with each token as it arrives.

    Raises:
        ValueError: no token was generated, or the model returned NaN.
    """
    recorder = MarginRecorder()
    clock = TokenClock(loaded.model.device, on_token, recorder.take_seconds)
    prompt_ids = prompt.token_ids.to(loaded.model.device)
    arguments: dict[str, Any] = greedy_arguments(max_new_tokens) | {
        "streamer": clock,
        "logits_processor": LogitsProcessorList([recorder]),
    }
    with loaded.context(), torch.no_grad():
        clock.start()
        if loaded.generate is None:
            loaded.model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids), **arguments)
        else:
            loaded.generate(prompt_ids=prompt_ids, messages=prompt.messages, **arguments)
    margins = recorder.margins(len(clock.token_ids))
    if not clock.token_ids:
        raise ValueError("the model generated no token")
    if any(math.isnan(margin) for margin in margins):
        raise ValueError("the model's logits contain NaN")
    return Generated(token_ids=tuple(clock.token_ids), intervals_s=tuple(clock.intervals_s), margins=margins)


def greedy_arguments(max_new_tokens: int) -> dict[str, Any]:
    """Return arguments that make generate greedy, regardless of the checkpoint's generation settings."""
    # None removes the checkpoint's sampling settings, about which generate would warn
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all queued work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
