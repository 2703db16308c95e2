"""Calls of `generate()` of many kinds, to run alone on a plain model and together on a streamed one.

Test kit. A call is a function from a transformers model to a tensor; it sets its own random seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic, sleep
from typing import Any

import torch
from transformers import PreTrainedModel

import layerstream as ls

Call = Callable[[PreTrainedModel], torch.Tensor]


def prompt(model: PreTrainedModel, length: int) -> dict[str, torch.Tensor]:
    """Return a random prompt of `length` tokens: `input_ids` and `attention_mask`, both (1, length) int64."""
    vocab_size = min(model.get_input_embeddings().weight.shape[0], 120)
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, vocab_size, (1, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def generation(length: int, new_tokens: int, *, seed: int = 0, **settings: Any) -> Call:
    """Return a call that generates exactly `new_tokens` after a prompt of `length` tokens, from `seed`."""

    def call(model: PreTrainedModel) -> torch.Tensor:
        torch.manual_seed(seed)
        lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "pad_token_id": 0}
        output: torch.Tensor = model.generate(**prompt(model, length), **lengths, **settings)
        return output

    return call


def many_kinds() -> list[Call]:
    """Return greedy, sampled and beam calls of different lengths; the longest takes nine sweeps."""
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 20}
    return [
        generation(7, 5, do_sample=False),
        generation(4, 9, seed=3, **sampling),
        generation(9, 4, do_sample=False, num_beams=3),
        generation(3, 2, seed=4, **sampling),
        generation(5, 6, do_sample=True, num_beams=2, seed=5),
        generation(12, 1, do_sample=False),
    ]


LONGEST = 1
"""The index of the longest call in `many_kinds()`."""


def together(streamed: ls.StreamedModel, calls: list[Call], **settings: Any) -> list[torch.Tensor]:
    """Return what `calls` return when they share their sweeps."""
    results = streamed.group.run([partial(call, streamed.model) for call in calls], **settings)
    for result in results:
        if result.error is not None:
            raise result.error
    return [result.value for result in results]


def settled_reads(streamed: ls.StreamedModel) -> tuple[int, int]:
    """Return (reads, bytes) of units since loading, once the last prefetched units are in place too."""
    total = streamed.timeline.totals[ls.Activity.READ]
    seen, since_s = (-1, -1), monotonic()
    while monotonic() - since_s < 0.3:
        now = (total.count, total.num_bytes)
        if now != seen:
            seen, since_s = now, monotonic()
        sleep(0.01)
    return seen
