"""Let forwards of single tokens branch off one cache, as a tree, without storing anything in it.

Each branch holds the keys and values of one token and knows the branch that it continues. Its forward sees
what it would see if the tokens before it were in an ordinary cache: the same keys and values, in tensors of
the same shape. So it computes the same bits. Room: architecture. Works on transformers' cache layers.

The forwards of a tree may run layer by layer, all of them through one layer before the next: a branch asks
for the keys and values of its ancestors when its own layer computes, and knows its length beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig

from . import compat
from .continuing_layer import ContinuingLayer


class BranchingCache:
    """A cache, and the branches that continue it.

    Attributes:
        cache: an ordinary cache, which holds the tokens that are certain; only `keep` and its own forwards
            change it.
    """

    def __init__(self, config: PreTrainedConfig, cache: DynamicCache | None = None) -> None:
        """Branch off `cache`; None makes an empty one."""
        self.cache = DynamicCache(config=config) if cache is None else cache
        self._config = config

    def branch(self, after: DynamicCache | None = None) -> DynamicCache:
        """Return the cache for the forward of one token, which follows those in the cache, or a branch."""
        branch = DynamicCache(config=self._config)
        before = self.cache if after is None else after
        branch.layers = [
            own if compat.is_placeholder(own) else _BranchLayer(own, layer)
            for own, layer in zip(self.cache.layers, before.layers, strict=True)
        ]
        return branch

    def keep(self, branches: list[DynamicCache]) -> None:
        """Store the tokens of `branches`, each of which continues the one before it.

        The first continues the cache. Branches that continue the last one stay as they are.
        """
        if not branches:
            return
        for own, *layers in zip(self.cache.layers, *(branch.layers for branch in branches), strict=True):
            kept = [layer for layer in layers if isinstance(layer, _BranchLayer) and layer.keys is not None]
            if kept:
                keys = torch.cat([layer.keys for layer in kept], dim=-2)
                own.update(keys, torch.cat([layer.values for layer in kept], dim=-2))
            for layer in kept:
                layer.give_to_trunk()


class _BranchLayer(ContinuingLayer):
    """One layer's cache of a branch: its own token's keys and values."""

    def __init__(self, trunk: Any, before: Any) -> None:
        is_branch = isinstance(before, _BranchLayer)
        super().__init__(trunk, before.num_past + 1 if is_branch else before.get_seq_length())
        self.num_past = self.num_tokens
        self._trunk = trunk
        self._before: _BranchLayer | None = before if is_branch else None
        self._is_in_trunk = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = key_states, value_states
        self.num_tokens = self.num_past + 1
        return self._after_past("keys", key_states), self._after_past("values", value_states)

    def give_to_trunk(self) -> None:
        """Forget the keys and values: the trunk holds them now."""
        self.keys = self.values = torch.empty(0)
        self._is_in_trunk = True

    def _after_past(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """Return the past's keys or values with `own` after them, as a layer that stores them would."""
        past: list[torch.Tensor] = []
        layer = self._before
        while layer is not None and not layer._is_in_trunk:
            past.append(getattr(layer, name))
            layer = layer._before
        past.append(getattr(self._trunk, name))
        past.reverse()
        if self.window is None:
            return torch.cat([*past, own], dim=-2)
        return torch.cat([torch.cat(past, dim=-2)[:, :, -self.window + 1 :, :], own], dim=-2)
