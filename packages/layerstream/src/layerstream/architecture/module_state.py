"""State that modules keep to themselves: attributes in which a forward leaves tensors, instead of in the cache that is passed on.

Room: architecture. Found by structure: run forwards on shapes, and see what is left behind. It must go again before the model runs
on values, and where several computations interleave it must be each one's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ModuleState = tuple[tuple[str, tuple[str, ...]], ...]
"""Paths of modules, each with the names of the attributes that hold its state."""

_TORCHS_OWN = frozenset({"_parameters", "_buffers", "_modules"})


class AttributeSnapshot:
    """What the attributes of every module of a model are before forwards on shapes."""

    def __init__(self, model: nn.Module) -> None:
        """Remember them."""
        self._before = [(path, module, _plain(module)) for path, module in model.named_modules()]

    def put_back(self) -> ModuleState:
        """Give every attribute its value from before; return those that were left holding a tensor."""
        found = []
        for path, module, before in self._before:
            left = [name for name, value in _plain(module).items() if isinstance(value, torch.Tensor)]
            changed = tuple(name for name in left if module.__dict__[name] is not before.get(name))
            for name in changed:
                if name in before:
                    module.__dict__[name] = before[name]
                else:
                    del module.__dict__[name]
            if changed:
                found.append((path, changed))
        return tuple(found)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _TORCHS_OWN}
