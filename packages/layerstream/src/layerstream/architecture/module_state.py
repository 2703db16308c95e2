"""Find the state that modules keep in their own attributes instead of in the cache.

Room: architecture. The state is found by structure: run forwards on shapes, and see which attributes then
hold a new tensor. It must be removed before the model runs on values, and when several computations
interleave, each needs its own copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ModuleState = tuple[tuple[str, tuple[str, ...]], ...]
"""Paths of modules, each with the names of the attributes that hold its state."""

_OWNED_BY_TORCH = frozenset({"_parameters", "_buffers", "_modules"})


class AttributeSnapshot:
    """The attributes of every module of a model, as they were before forwards on shapes."""

    def __init__(self, model: nn.Module) -> None:
        """Take the snapshot."""
        self._before = [(path, module, _attributes(module)) for path, module in model.named_modules()]

    def restore(self) -> ModuleState:
        """Give every attribute its earlier value; return those in which a forward had left a tensor."""
        state = []
        for path, module, before in self._before:
            tensors = [name for name, value in _attributes(module).items() if isinstance(value, torch.Tensor)]
            changed = tuple(name for name in tensors if module.__dict__[name] is not before.get(name))
            for name in changed:
                if name in before:
                    module.__dict__[name] = before[name]
                else:
                    del module.__dict__[name]
            if changed:
                state.append((path, changed))
        return tuple(state)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _OWNED_BY_TORCH}
