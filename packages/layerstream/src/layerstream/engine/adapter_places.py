"""What happens where peft puts a layer with an adapter into a model whose weights move, whoever calls peft.

The hooks that stream a module go over to the layer around it, so that the weights are there for all that the
layer does. The layer refuses to merge: a merge goes from layer to layer, and would change the resident ones
before it meets one that streams.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn

from torch import nn

from ..errors import UnsupportedModelError
from ..streaming.binding import is_streaming_hook
from .model_patches import HOOK_FLAGS, HOOKS, copy_without_streaming

_ON_LAYERS = ("merge", "unload_and_optionally_merge_module")


def watch_places(model: nn.Module) -> None:
    """Watch what is put in the places of the modules of `model`."""
    for module in model.modules():
        module.__dict__["_modules"] = _WatchedModules(module._modules)


def unwatch_places(model: nn.Module) -> None:
    """Undo `watch_places`, and take off the hooks that have changed places since."""
    for module in model.modules():
        if isinstance(module._modules, _WatchedModules):
            module.__dict__["_modules"] = dict(module._modules)
        _move_streaming_hooks(module, None)


class _WatchedModules(dict[str, Any]):
    """A module's dictionary of children."""

    def __setitem__(self, name: str, child: nn.Module | None) -> None:
        """Set a child, which may be a layer with an adapter, or the layer that was inside one."""
        current = self.get(name)
        if current is not None and child is not None and current is not child:
            if hasattr(child, "base_layer") or hasattr(current, "base_layer"):
                _move_streaming_hooks(current, child)
            _prepare(child)
        super().__setitem__(name, child)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        """Return a plain dictionary with a copy of every child."""
        return {name: deepcopy(child, memo) for name, child in self.items()}


def _move_streaming_hooks(source: nn.Module, target: nn.Module | None) -> None:
    """Take the streaming hooks off `source`, and put them on `target` if there is one.

    Those of an embedding stay: they number the token ids anew, and an adapter needs the ids as they are.
    """
    if isinstance(source, nn.Embedding):
        return
    for kind in HOOKS:
        hooks = source.__dict__[kind]
        for number in [number for number, hook in hooks.items() if is_streaming_hook(hook)]:
            hook = hooks.pop(number)
            flags = [flag for flag in HOOK_FLAGS if source.__dict__[flag].pop(number, False)]
            if target is not None:
                target.__dict__[kind][number] = hook
                target.__dict__[kind].move_to_end(number, last=False)
                for flag in flags:
                    target.__dict__[flag][number] = True


def _prepare(layer: nn.Module) -> None:
    """Let a layer with an adapter refuse to merge."""
    if hasattr(layer, "base_layer"):
        layer.__dict__["__deepcopy__"] = partial(_copy, layer)
    if hasattr(layer, "merge") and hasattr(layer, "base_layer"):
        layer.__dict__["merge"] = _refuse_merge
    if hasattr(layer, "unload_and_optionally_merge_module"):
        layer.__dict__["unload_and_optionally_merge_module"] = _unload_only(layer)


def _copy(layer: nn.Module, memo: dict[int, Any]) -> nn.Module:
    copied = copy_without_streaming(layer, memo)
    for name in _ON_LAYERS:
        copied.__dict__.pop(name, None)
    return copied


def _unload_only(layer: nn.Module) -> Callable[..., Any]:
    unload: Any = layer.unload_and_optionally_merge_module

    def unload_or_refuse(*args: Any, **kwargs: Any) -> Any:
        if args[0] if args else kwargs["merge"]:
            _refuse_merge()
        return unload(*args, **kwargs)

    return unload_or_refuse


def _refuse_merge(*_: Any, **__: Any) -> NoReturn:
    raise UnsupportedModelError(
        "an adapter cannot be merged into a streamed model: the next forward reads its weights from the "
        "checkpoint again. Nothing was changed, and the adapter works without a merge. For a merged model, "
        "merge with transformers and peft where the model fits, save it, and stream that"
    )
