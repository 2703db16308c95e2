"""Share a prefix's keys and values among the forwards of many suffixes, none of which stores anything.

Room: architecture. Works on transformers' cache layers and decides by their classes whether a model's cache
can be shared. It does not know the order of the forwards: a suffix's cache may be made before the prefix has
run, because it needs only the prefix's length; it looks up the keys and values when a block asks for them.

A layer's keys and values are dropped as soon as the last suffix has read them. When every suffix goes through
a block before the next block is visited (layer-major), a prefix therefore never holds more than the layers
between two units.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from ..errors import StreamError
from . import compat
from .continuing_layer import ContinuingLayer


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Return why suffixes cannot read the cache of their prefix in this model; None when they can."""
    name = type(model).__name__
    if compat.keeps_state(model):
        return f"{name} keeps a recurrent state, which each continuation changes"
    if compat.cache_keyword(model) is None:
        return f"{name} takes no cache of keys and values"
    layers = DynamicCache(config=model.config).layers
    others = sorted({type(layer).__name__ for layer in layers if not compat.is_plain_cache_layer(layer)})
    if others or not layers:
        return f"{name} has cache layers that are more than keys and values: {', '.join(others) or 'none'}"
    return None


class SharedPrefix:
    """The cache of one prefix and the caches of its suffixes.

    Attributes:
        cache: the cache for the prefix's own forward.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, readers: int) -> None:
        """Prepare for a prefix of `tokens` tokens that `readers` forwards continue."""
        self._config, self._tokens = model.config, tokens
        self.cache = DynamicCache(config=model.config)
        self._layers = [
            layer if compat.is_placeholder(layer) else _PrefixLayer(layer, readers)
            for layer in self.cache.layers
        ]
        self.cache.layers = list(self._layers)

    def reader(self) -> DynamicCache:
        """Return the cache for the forward of one suffix: it reads the prefix and stores nothing."""
        cache = DynamicCache(config=self._config)
        cache.layers = [
            _SuffixLayer(own, prefix, self._tokens) if isinstance(prefix, _PrefixLayer) else own
            for own, prefix in zip(cache.layers, self._layers, strict=True)
        ]
        return cache


class _PrefixLayer(compat.CacheLayerMixin):
    """One layer's cache of the prefix, until the last suffix has read it."""

    def __init__(self, layer: Any, readers: int) -> None:
        super().__init__()
        self.layer, self._readers_left, self._length = layer, readers, 0
        self.is_sliding = getattr(layer, "is_sliding", False)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = self.layer.update(key_states, value_states, *args, **kwargs)
        self.is_initialized = True
        self._length = self.layer.get_seq_length()
        self.keys, self.values = self.layer.keys, self.layer.values
        self._drop_if_read()
        return result

    def lend(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prefix's keys and values to one of its readers."""
        if self.keys is None or self.values is None:
            raise StreamError(
                "a suffix needs the keys and values of its prefix, whose own computation has failed"
            )
        lent = self.keys, self.values
        self._readers_left -= 1
        self._drop_if_read()
        return lent

    def _drop_if_read(self) -> None:
        if self._readers_left <= 0:
            self.keys = self.values = None
            self.layer.keys = self.layer.values = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.layer.lazy_initialization(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        sizes: tuple[int, int] = self.layer.get_mask_sizes(query_length)
        return sizes

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        length: int = self.layer.get_max_length()
        return length


class _SuffixLayer(ContinuingLayer):
    """One layer's cache of a suffix: its keys and values after the prefix's, for the duration of a call."""

    def __init__(self, own: Any, prefix: _PrefixLayer, prefix_tokens: int) -> None:
        super().__init__(own, prefix_tokens)
        self._prefix = prefix

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._prefix.lend()
        self.num_tokens += key_states.shape[-2]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
