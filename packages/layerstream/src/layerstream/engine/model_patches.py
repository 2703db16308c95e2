"""Apply and remove the patches that a transformers model needs while its weights come and go.

Every patch is on an instance; no class is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..streaming.absent_weight import AbsentWeight
from ..streaming.binding import is_streaming_hook
from ..streaming.eager import EAGER_WARNING

T = TypeVar("T")

_REFUSED = {
    "save_pretrained": "save_pretrained(): copy the checkpoint's files, or save a model loaded with "
    "transformers",
    "push_to_hub": "push_to_hub(): upload the checkpoint's files",
    "resize_token_embeddings": "resize_token_embeddings(): resize a model loaded with transformers, save it, "
    "and stream that",
    "share_memory": "share_memory(): load the model in each process",
    "__deepcopy__": "copy.deepcopy(): it would read all weights into memory; call load() again",
    "__reduce_ex__": "pickling or copying: call load() again, in the other process if there is one",
}
"""Methods that cannot work on the whole model, with what to do instead."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""Where a module keeps the hooks around its forward, by number."""

HOOK_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
"""Where it keeps the numbers of those that are called in a special way."""

_ON_INSTANCES = ("forward", "_apply", "__deepcopy__", "load_state_dict", "compile")
"""Attributes that layerstream sets on single modules; a copy must not have them."""


class ModelPatches:
    """The patches of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Patch `model`, whose absent weights are in place."""
        self._undo: list[Callable[[], object]] = []
        for module in _modules_with_absent_weights(model):
            self._set(module, "__deepcopy__", partial(copy_without_streaming, module))
            self._set(module, "load_state_dict", partial(_load_other_weights, module))
            self._set(module, "compile", _warn_about_compile)
            self._set(module, "_apply", partial(_apply_if_unchanged, module))
        for name, advice in _REFUSED.items():
            self._set(model, name, partial(_refuse, advice))
        self._set(model, "compile", _warn_about_compile)
        self._set(model, "_apply", partial(_apply_if_unchanged, model))
        # They are tied as the checkpoint says, and transformers ties again whenever it loads an adapter.
        self._set(model, "tie_weights", lambda *_, **__: None)

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        module.__dict__[name] = value
        self._undo.append(lambda: module.__dict__.pop(name, None))

    def remove(self) -> None:
        """Remove every patch."""
        while self._undo:
            self._undo.pop()()


def _refuse(advice: str, *_arguments: Any, **_options: Any) -> NoReturn:
    what, _, instead = advice.partition(": ")
    raise UnsupportedModelError(
        f"{what} does not work on a streamed model, whose weights come and go: {instead}"
    )


def _load_other_weights(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
) -> Any:
    """Run `module.load_state_dict` unless it would change an absent weight; then nothing is changed."""
    own = module.state_dict(keep_vars=True)
    for name, value in state_dict.items():
        absent = own.get(name)
        if isinstance(absent, AbsentWeight) and (assign or not absent.equals(value)):
            absent.refuse_write("load_state_dict()")
    return type(module).load_state_dict(module, state_dict, strict=strict, assign=assign)


def _warn_about_compile(*_: Any, **__: Any) -> None:
    warnings.warn(EAGER_WARNING, UserWarning, stacklevel=2)


def _modules_with_absent_weights(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module that has an absent weight, itself or below."""
    for module in model.modules():
        state = [*module.parameters(), *module.buffers()]
        if any(isinstance(tensor, AbsentWeight) for tensor in state):
            yield module


def _apply_if_unchanged(
    module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """Run `module._apply(function)`, which is what `to()`, `half()`, `type()` and others call.

    It is refused, before anything is changed, if `function` would make other tensors of absent weights, or of
    any weight where all are resident.
    """
    weights = list(module.parameters())
    absent = [tensor for tensor in weights if isinstance(tensor, AbsentWeight)]
    for dtype, device in {(tensor.dtype, tensor.device) for tensor in absent or weights}:
        probe = torch.empty(0, dtype=dtype, device=device)
        result = function(probe)
        if result is not probe:
            raise UnsupportedModelError(
                f"the weights of this streamed {type(module).__name__} stay {dtype} on {device}; "
                f"{result.dtype} on {result.device} was asked for: choose device and dtype in load()"
            )
    applied: nn.Module = type(module)._apply(module, function, recurse)
    return applied


def copy_without_streaming(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a resident copy of `module`: its weights are read from the checkpoint, and no hook streams."""
    copied = type(module).__new__(type(module))
    memo[id(module)] = copied
    hooks = {**module._forward_pre_hooks, **module._forward_hooks}
    ours = {number for number, hook in hooks.items() if is_streaming_hook(hook)}
    for name, value in module.__dict__.items():
        if name in _ON_INSTANCES:
            continue
        kept: Any = value
        if name in HOOKS + HOOK_FLAGS:
            kept = type(value)((number, hook) for number, hook in value.items() if number not in ours)
        copied.__dict__[name] = deepcopy(kept, memo)
    return copied


def named_after(own: type[T], model: PreTrainedModel) -> type[T]:
    """Return a subclass of `own` with the name of the model's class.

    A pipeline checks that name only, and prints an error about any that it does not know.
    """
    name = type(model).__name__
    body = {
        "__module__": own.__module__,
        "__qualname__": f"{own.__qualname__}[{name}]",
        "__doc__": own.__doc__,
    }
    return type(name, (own,), body)
