"""Run forwards without a graph, and refuse a backward through them with a clear error.

A graph would point at slots, which hold other weights by the time of the backward: its gradients would be
wrong without a word. Room: streaming.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import Any

import torch

from ..errors import UnsupportedModelError


def without_backward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` computed under no_grad; where gradients are on, a backward through it is refused.

    As in the plain model, its floating-point outputs then require gradients.
    """

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with torch.no_grad():
            output = forward(*args, **kwargs)
        return _refuse_backward(output)

    return run


def _refuse_backward(output: Any) -> Any:
    """Return `output` with a node that raises in a backward; caches and other objects stay as they are."""
    if isinstance(output, torch.Tensor):
        if not output.is_floating_point():
            return output
        return _NoBackward.apply(output, _anchor())  # type: ignore[no-untyped-call]
    if type(output) in (tuple, list):
        return type(output)(_refuse_backward(value) for value in output)
    if isinstance(output, MutableMapping):
        for name, value in output.items():
            output[name] = _refuse_backward(value)
    return output


def _anchor() -> torch.Tensor:
    """Return an input that requires gradients, without which autograd would leave the node out."""
    return torch.empty(0, requires_grad=True)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise UnsupportedModelError(
            "a backward cannot go through a streamed model: its weights come and go, and nothing is kept for "
            "gradients. Use it for inference; for gradients, load the model with transformers"
        )
