"""One forward, as `generate()` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel


def run_forward(
    model: PreTrainedModel,
    ids: torch.Tensor,
    num_new: int,
    inputs: Mapping[str, Any],
    *,
    num_logits: int = 1,
    is_first: bool = False,
) -> torch.Tensor:
    """Run the last tokens of a text and return the logits after some of them.

    Args:
        model: the model.
        ids: the text, `[1, length]`.
        num_new: how many of its tokens the cache does not hold yet.
        inputs: what `generate()` passes from forward to forward: the cache, the attention mask, and so on.
        num_logits: how many of the last tokens to return logits for.
        is_first: nothing of the text has been run yet.

    Returns:
        The logits, `[num_logits, vocabulary]`.
    """
    prepared = model.prepare_inputs_for_generation(
        ids, next_sequence_length=num_new, is_first_iteration=is_first, **inputs
    )
    if "logits_to_keep" in prepared:
        prepared["logits_to_keep"] = num_logits
    logits: torch.Tensor = model(**prepared, return_dict=True).logits[0, -num_logits:]
    return logits
