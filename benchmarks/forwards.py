"""Time decode steps of a loaded model: one new token per sequence and step, after a short prompt."""

from __future__ import annotations

from typing import Any

import torch
from common import timed

PROMPT_TOKENS = 16


@torch.no_grad()
def decode_seconds(model: Any, *, batch_size: int, steps: int) -> float:
    """Return the seconds of one decode step: the mean of `steps` in a row, after the prefill and one step.

    Args:
        model: transformers' model, or a streamed one.
        batch_size: sequences; each gets one new token per step.
        steps: number of timed forwards.
    """
    prompt = torch.arange(3, 3 + batch_size * PROMPT_TOKENS).reshape(batch_size, PROMPT_TOKENS) % 500
    prompt = prompt.to(model.device)
    cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = torch.full((batch_size, 1), 5, device=model.device)
    device = torch.get_device_module(model.device)

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)

    def run() -> None:
        for _ in range(steps):
            step()
        device.synchronize()

    step()
    device.synchronize()
    return timed(run) / steps
