"""Time decode steps of a loaded model: one new token per sequence and step, after a short prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import timed

PROMPT_TOKENS = 16


@torch.no_grad()
def decode_seconds(
    model: Any, *, batch_size: int, steps: int, before_step: Callable[[], object] | None = None
) -> float:
    """Return the seconds of one decode step: the mean of `steps` in a row, after the prefill and one step.

    Args:
        model: transformers' model, or a streamed one.
        batch_size: sequences; each gets one new token per step.
        steps: number of timed forwards.
        before_step: called before each of them, not timed. Without it they follow one another at once.
    """
    prompt = torch.arange(3, 3 + batch_size * PROMPT_TOKENS).reshape(batch_size, PROMPT_TOKENS) % 500
    prompt = prompt.to(model.device)
    cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = torch.full((batch_size, 1), 5, device=model.device)
    device = torch.get_device_module(model.device)

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)

    def run(number: int) -> None:
        for _ in range(number):
            step()
        device.synchronize()

    run(1)
    if before_step is None:
        return timed(lambda: run(steps)) / steps
    seconds = 0.0
    for _ in range(steps):
        before_step()
        seconds += timed(lambda: run(1))
    return seconds / steps
