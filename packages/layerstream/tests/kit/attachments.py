"""Things that people attach to a transformers model: streamers, logits processors, stopping criteria, hooks.

Test kit. Most record what they are given, so that a test can compare two models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .compare import Tensors, logits


def outputs_of_blocks(model: PreTrainedModel) -> Tensors:
    """Return the outputs that hooks on the blocks see in one forward, by block."""
    seen: Tensors = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, output, name=f"block {index}": seen.update({name: output}))
        for index, block in enumerate(model.get_decoder().layers)
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return seen


def weights_in_use(model: PreTrainedModel) -> Tensors:
    """Return the weight of every linear layer in the blocks as a hook sees it right before the layer runs."""
    seen: Tensors = {}
    layers = {
        name: module
        for name, module in model.get_decoder().layers.named_modules()
        if isinstance(module, nn.Linear)
    }
    handles = [
        module.register_forward_pre_hook(
            lambda module, _i, name=name: seen.update({name: module.weight.detach().clone()})
        )
        for name, module in layers.items()
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return seen


class Recorder(BaseStreamer):
    """Records every token."""

    def __init__(self) -> None:
        self.heard: list[list[int] | str] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.heard.append("end")


class ForbidEven(LogitsProcessor):
    """Forbids every even token."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.clone())
        even = torch.arange(scores.shape[-1]) % 2 == 0
        return scores.masked_fill(even, -torch.inf)


class Broken(StoppingCriteria):
    """Raises at the third new token of a prompt of nine."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] > 11:
            raise BrokenPipeError
        return torch.zeros(len(input_ids), dtype=torch.bool)
