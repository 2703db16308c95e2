"""Chunked prefill within a block visit: token-wise modules work through a long prompt piece by piece.

Room: architecture. The widest activations of a long prompt are those of the feed-forward part. It treats each
token separately, so its own forward can run on a few tokens at a time while the block's weights are in place.
The `prefill_chunk_size` of `generate()` would take one sweep per chunk instead, and so read all weights for
each chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .meta_forward import forward_on_meta

_PROBE_TOKENS = 8


def chunk_feed_forward(
    model: PreTrainedModel, block_paths: tuple[str, ...], chunk_tokens: int
) -> tuple[nn.Module, ...]:
    """Make every token-wise part of the blocks run on at most `chunk_tokens` positions at a time.

    Results equal those of the whole prompt up to rounding: in bf16 and fp16, kernels may round differently
    for other shapes.

    Args:
        model: a skeleton on the meta device.
        block_paths: the paths of the decoder blocks.
        chunk_tokens: the number of positions at a time.

    Returns:
        The changed modules; their `forward` is set on the instance and can be deleted again. Empty when the
        model's forward cannot run on shapes, or its blocks have no such part.
    """
    modules = _token_wise_modules(model, block_paths)
    for module in modules:
        module.__dict__["forward"] = _in_chunks(module.forward, chunk_tokens)
    return modules


def _token_wise_modules(model: PreTrainedModel, block_paths: tuple[str, ...]) -> tuple[nn.Module, ...]:
    """Return the children of blocks that map one (batch, tokens, width) tensor to another of its shape."""
    is_token_wise: dict[nn.Module, bool] = {}

    def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        is_alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and args[0].dim() == 3
        keeps_shape = is_alone and isinstance(result, torch.Tensor) and result.shape == args[0].shape
        is_token_wise[module] = is_token_wise.get(module, True) and keeps_shape

    children = [
        child
        for path in block_paths
        for child in model.get_submodule(path).children()
        if _may_be_token_wise(child)
    ]
    handles = [child.register_forward_hook(check, with_kwargs=True) for child in children]
    try:
        runs = forward_on_meta(model, _PROBE_TOKENS) is not None
    finally:
        for handle in handles:
            handle.remove()
    return tuple(module for module, passed in is_token_wise.items() if runs and passed)


def _may_be_token_wise(module: nn.Module) -> bool:
    """Return whether the module has layers inside, whose activations are wide, but no convolution.

    A convolution's result depends on neighbouring tokens.
    """
    has_layers = any(True for _ in module.children())
    return has_layers and not any("conv" in type(inner).__name__.lower() for inner in module.modules())


def _in_chunks(whole: Callable[..., torch.Tensor], chunk_tokens: int) -> Callable[..., torch.Tensor]:
    @wraps(whole)
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] <= chunk_tokens:
            return whole(hidden)
        result: torch.Tensor | None = None
        for start in range(0, hidden.shape[1], chunk_tokens):
            part = whole(hidden[:, start : start + chunk_tokens])
            if result is None:
                result = part.new_empty((*hidden.shape[:-1], part.shape[-1]))
            result[:, start : start + chunk_tokens] = part
        assert result is not None
        return result

    return forward
