"""Refuse to merge adapters into streamed weights before anything is changed.

A merge goes from layer to layer, and without this guard it would change the resident ones before it meets
one that streams. The guard sits where every layer with an adapter is put into the model, whoever does it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NoReturn

from torch import nn

from ..errors import UnsupportedModelError


def guard_merges(model: nn.Module) -> None:
    """Let every layer with an adapter that is put into `model` from now on refuse to merge."""
    for module in model.modules():
        module.__dict__["_modules"] = _GuardedModules(module._modules)


def unguard_merges(model: nn.Module) -> None:
    """Undo `guard_merges`; layers that were put in keep their refusal."""
    for module in model.modules():
        if isinstance(module._modules, _GuardedModules):
            module.__dict__["_modules"] = dict(module._modules)


class _GuardedModules(dict[str, Any]):
    """A module's dictionary of children."""

    def __setitem__(self, name: str, child: nn.Module | None) -> None:
        """Set a child; one that could merge an adapter loses the means to."""
        if hasattr(child, "merge") and hasattr(child, "base_layer"):
            child.__dict__["merge"] = _refuse_merge
        if hasattr(child, "unload_and_optionally_merge_module"):
            child.__dict__["unload_and_optionally_merge_module"] = _unload_only(child)
        super().__setitem__(name, child)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        """Return a plain dictionary with a copy of every child."""
        return {name: deepcopy(child, memo) for name, child in self.items()}


def _unload_only(child: nn.Module) -> Any:
    unload: Any = child.unload_and_optionally_merge_module

    def unload_or_refuse(*args: Any, **kwargs: Any) -> Any:
        if args[0] if args else kwargs["merge"]:
            _refuse_merge()
        return unload(*args, **kwargs)

    return unload_or_refuse


def _refuse_merge(*_: Any, **__: Any) -> NoReturn:
    raise UnsupportedModelError(
        "an adapter cannot be merged into a streamed model: the next forward reads its weights from the checkpoint "
        "again. Nothing was changed, and the adapter works without a merge. For a merged model, merge with "
        "transformers and peft where the model fits, save it, and stream that"
    )
