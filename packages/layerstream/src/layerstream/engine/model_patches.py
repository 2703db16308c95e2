"""Apply and remove the patches that a transformers model needs while its weights come and go.

Every patch is on the instance; no class is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError

_PLACEHOLDER = "layerstream_placeholder"
_REFUSED = (
    "half",
    "float",
    "bfloat16",
    "double",
    "cuda",
    "cpu",
    "save_pretrained",
    "resize_token_embeddings",
    "tie_weights",
)


def add_placeholders(model: PreTrainedModel, device: torch.device) -> None:
    """Give every (sub)model whose first parameter is streamed an empty first parameter on the device.

    `model.device` and `model.dtype` are those of the first parameter, and transformers asks for them: on the
    meta device, generate() would pick another experts kernel and create its inputs there.
    """
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        first = next(module.parameters(), None)
        if first is not None and first.is_meta:
            empty = torch.empty(0, dtype=first.dtype, device=device)
            module._parameters = {
                _PLACEHOLDER: nn.Parameter(empty, requires_grad=False),
                **module._parameters,
            }


def refuse_unsupported(model: PreTrainedModel, device: torch.device) -> None:
    """Make methods that would break a streamed model raise an error that gives the reason."""

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            raise UnsupportedModelError(
                f"model.{name}() cannot be used on a streamed model, whose weights come and go: "
                "choose device and dtype in load(), and train, resize or save with transformers' own model"
            )

        return refused

    def to(*args: Any, **kwargs: Any) -> PreTrainedModel:
        target, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (target is None or target == device) and dtype in (None, model.dtype):
            return model
        raise UnsupportedModelError(
            f"model.to({target or dtype}) cannot move a streamed model: choose device and dtype in load()"
        )

    for name in _REFUSED:
        model.__dict__[name] = refuse(name)
    model.__dict__["to"] = to


def allow_again(model: PreTrainedModel) -> None:
    """Undo `refuse_unsupported`."""
    for name in (*_REFUSED, "to"):
        model.__dict__.pop(name, None)


def unload_weights(model: nn.Module) -> None:
    """Put meta tensors in place of all weights, which frees their memory, and remove the placeholders."""
    for module in model.modules():
        module._parameters.pop(_PLACEHOLDER, None)
        for name, tensor in module._parameters.items():
            if tensor is not None and not tensor.is_meta:
                module._parameters[name] = nn.Parameter(
                    tensor.detach().to("meta"), requires_grad=tensor.requires_grad
                )
