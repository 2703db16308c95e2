"""One measured greedy generation: a streamer that takes the time of every token and tells of it.

Worker's side. It knows transformers' generate and nothing of variants.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from ..variants.loaded import Loaded
from ..variants.prompts import Prompt

OnToken = Callable[[int, int], None]
"""Called with the index among the new tokens and the token's id; its time is not counted."""


class TokenClock(BaseStreamer):
    """Note when each token is there, the device synchronized; what listeners do with it is not counted.

    Attributes:
        token_ids: the new tokens.
        waits_s: seconds from the start to the first token, then from token to token.
    """

    def __init__(self, device: torch.device, on_token: OnToken, pause: Callable[[], float]) -> None:
        """Prepare; `start` starts the clock.

        Args:
            device: to synchronize.
            on_token: told of each token.
            pause: returns, and forgets, seconds since the last token that measuring itself took.
        """
        self.token_ids: list[int] = []
        self.waits_s: list[float] = []
        self._device = device
        self._on_token = on_token
        self._pause = pause
        self._is_prompt = True
        self._since = 0.0

    def start(self) -> None:
        """Start the clock."""
        synchronize(self._device)
        self._since = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (first call), then each new token."""
        if self._is_prompt:
            self._is_prompt = False
            return
        synchronize(self._device)
        self.waits_s.append(time.perf_counter() - self._since - self._pause())
        token = int(value.flatten()[-1])
        self.token_ids.append(token)
        self._on_token(len(self.token_ids) - 1, token)
        self._since = time.perf_counter()

    def end(self) -> None:
        """Nothing is left to do."""


class MarginRecorder(LogitsProcessor):
    """Keep the distribution's p1 - p2 at each generated token, and the seconds that takes.

    Attributes:
        margins: one each.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.margins: list[torch.Tensor] = []
        self._seconds = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Note the margin of `scores`, shape [1, vocabulary], and return them as they are."""
        start = time.perf_counter()
        top = (scores.topk(2, dim=-1).values - scores.logsumexp(-1, keepdim=True)).exp()
        self.margins.append(top[0, 0] - top[0, 1])
        self._seconds += time.perf_counter() - start
        return scores

    def take_seconds(self) -> float:
        """Return the seconds spent here since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What came of one generation.

    Attributes:
        token_ids: the new tokens.
        waits_s: seconds to the first token, then between tokens.
        margins: p1 - p2 at each.
    """

    token_ids: tuple[int, ...]
    waits_s: tuple[float, ...]
    margins: tuple[float, ...] = field(default=())

    @property
    def first_token_s(self) -> float:
        """Seconds from the call to the first token."""
        return self.waits_s[0]

    @property
    def inter_token_s(self) -> tuple[float, ...]:
        """Seconds between tokens after the first."""
        return self.waits_s[1:]

    @property
    def median_s(self) -> float:
        """Their median; 0 when there was one token."""
        return statistics.median(self.inter_token_s) if self.inter_token_s else 0.0

    @property
    def p95_s(self) -> float:
        """Their 95th percentile, interpolated; 0 when there was one token."""
        if len(self.inter_token_s) < 2:
            return self.median_s
        return statistics.quantiles(self.inter_token_s, n=20, method="inclusive")[-1]

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first by the seconds between them; 0 when there was one token."""
        seconds = sum(self.inter_token_s)
        return len(self.inter_token_s) / seconds if seconds else 0.0


def generate_greedily(loaded: Loaded, prompt: Prompt, max_new_tokens: int, on_token: OnToken) -> Generated:
    """Generate greedily and take the time of every token.

    Args:
        loaded: the variant.
        prompt: what to answer.
        max_new_tokens: at most so many; fewer when the model ends its answer.
        on_token: told of each token as it comes.

    Raises:
        ValueError: no token came, or the model gave NaN.
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
    margins = tuple(float(margin) for margin in recorder.margins)
    if not clock.token_ids:
        raise ValueError("the model generated no token")
    if any(margin != margin for margin in margins):
        raise ValueError("the model's logits hold NaN")
    return Generated(token_ids=tuple(clock.token_ids), waits_s=tuple(clock.waits_s), margins=margins)


def greedy_arguments(max_new_tokens: int) -> dict[str, Any]:
    """Return generate's arguments for a greedy answer, whatever the checkpoint's own settings are."""
    # None takes the sampling settings of the checkpoint away, about which generate would warn
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done everything."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
