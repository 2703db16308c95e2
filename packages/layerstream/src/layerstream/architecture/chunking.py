"""Chunked prefill inside a block visit: let token-wise modules work through a long prompt piece by piece.

Room: architecture. The widest activations of a long prompt are those inside the feed-forward part; it treats each token alone, so
its own forward can run on a few tokens at a time while the block's weights are there. A sweep per chunk, which is what generate()'s
`prefill_chunk_size` would do, would read all weights for each chunk.
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
    """Let every token-wise part of the blocks run on at most `chunk_tokens` positions at a time.

    Results are those of the whole up to rounding: in bf16 and fp16, kernels may round differently for other shapes.

    Args:
        model: a skeleton on the meta device.
        block_paths: the decoder blocks.
        chunk_tokens: positions at a time.

    Returns:
        The modules that now do; their `forward` is set on the instance and can be deleted again. Empty when the model's forward
        cannot be run on shapes, or its blocks have no such part.
    """
    modules = _token_wise_modules(model, block_paths)
    for module in modules:
        module.__dict__["forward"] = _in_chunks(module.forward, chunk_tokens)
    return modules


def _token_wise_modules(model: PreTrainedModel, block_paths: tuple[str, ...]) -> tuple[nn.Module, ...]:
    """Return the children of blocks that map one (batch, tokens, width) tensor, and nothing else, to another of its shape."""
    seen: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and args[0].dim() == 3
        same = alone and isinstance(result, torch.Tensor) and result.shape == args[0].shape
        seen[module] = seen.get(module, True) and same

    children = [
        child
        for path in block_paths
        for child in model.get_submodule(path).children()
        if _may_be_token_wise(child)
    ]
    handles = [child.register_forward_hook(note, with_kwargs=True) for child in children]
    try:
        ran = forward_on_meta(model, _PROBE_TOKENS) is not None
    finally:
        for handle in handles:
            handle.remove()
    return tuple(module for module, is_token_wise in seen.items() if ran and is_token_wise)


def _may_be_token_wise(module: nn.Module) -> bool:
    """Only a part with layers of its own has wide activations; a convolution looks at neighbours."""
    has_layers = any(True for _ in module.children())
    return has_layers and not any("conv" in type(inner).__name__.lower() for inner in module.modules())


def _in_chunks(plain: Callable[..., torch.Tensor], chunk_tokens: int) -> Callable[..., torch.Tensor]:
    @wraps(plain)
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] <= chunk_tokens:
            return plain(hidden)
        result: torch.Tensor | None = None
        for start in range(0, hidden.shape[1], chunk_tokens):
            part = plain(hidden[:, start : start + chunk_tokens])
            if result is None:
                result = part.new_empty((*hidden.shape[:-1], part.shape[-1]))
            result[:, start : start + chunk_tokens] = part
        assert result is not None
        return result

    return forward
