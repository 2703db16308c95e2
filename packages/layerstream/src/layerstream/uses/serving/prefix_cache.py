"""Keep the keys and values of earlier conversations, so that the next turn does not compute them again.

An answer that continues a kept cache is what transformers gives for the same prompt and the same cache. It is
not always what a service without this gives: the tokens pass through the model in other groups, and kernels
round other shapes differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from ...architecture.shared_prefix import why_not_shared

LEAST_TOKENS = 16
"""A shorter common beginning is not worth a copy."""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """The cache of one text.

    Attributes:
        ids: its tokens; the cache holds all of them.
        cache: their keys and values, in host memory.
        num_bytes: their size.
    """

    ids: tuple[int, ...]
    cache: DynamicCache
    num_bytes: int


class PrefixCache:
    """Caches of texts in host memory. Use it from one thread at a time.

    Attributes:
        num_bytes: what they take.
        refusal: why nothing is kept for this model; empty if something is.
    """

    def __init__(self, model: PreTrainedModel, most_bytes: int) -> None:
        """Keep at most `most_bytes`."""
        self.num_bytes = 0
        self.refusal = why_not_shared(model) or ""
        self._model, self._most_bytes = model, most_bytes
        self._kept: list[_Kept] = []  # the one that was used last is the last

    def take(self, ids: Sequence[int]) -> DynamicCache:
        """Return a cache on the model's device for the longest known beginning of a prompt, maybe for none.

        A kept text that the prompt continues is handed over; of one that goes on differently, the common
        beginning is copied.

        Args:
            ids: the prompt; at least its last token is left to compute.
        """
        found = max(self._kept, key=lambda kept: _common(kept.ids, ids), default=None)
        length = 0 if found is None else min(_common(found.ids, ids), len(ids) - 1)
        if found is None or length < LEAST_TOKENS:
            return self._empty()
        if length == len(found.ids):
            self._remove(found)
            _move(found.cache, self._model.device)
            return found.cache
        if not _can_be_cut(found.cache):
            return self._empty()
        self._kept.append(self._kept.pop(self._kept.index(found)))
        begun = self._empty()
        for own, layer in zip(begun.layers, found.cache.layers, strict=True):
            if layer.get_seq_length():
                # `update` copies, so that the rest is not held
                parts = (tensor[..., :length, :] for tensor in (layer.keys, layer.values))
                own.update(*(part.to(self._model.device) for part in parts))
        return begun

    def put(self, ids: Sequence[int], cache: DynamicCache) -> None:
        """Keep a text's cache, as much of it as the cache holds, in place of the oldest ones.

        The cache belongs to this object afterwards.
        """
        kept_ids = tuple(ids[: cache.get_seq_length()])
        if self.refusal or len(kept_ids) < LEAST_TOKENS or type(cache) is not DynamicCache:
            return
        size = _move(cache, torch.device("cpu"))
        for known in [kept for kept in self._kept if kept_ids[: len(kept.ids)] == kept.ids]:
            self._remove(known)
        if size > self._most_bytes:
            return
        self._kept.append(_Kept(ids=kept_ids, cache=cache, num_bytes=size))
        self.num_bytes += size
        while self.num_bytes > self._most_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Forget the text that was used least lately; return whether there was one."""
        if not self._kept:
            return False
        self._remove(self._kept[0])
        return True

    def _remove(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self.num_bytes -= kept.num_bytes

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config.get_text_config(decoder=True))


def _move(cache: DynamicCache, device: torch.device) -> int:
    """Move a cache to a device, and return its bytes."""
    size = 0
    for layer in cache.layers:
        if layer.get_seq_length():
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
            size += layer.keys.nbytes + layer.values.nbytes
    return size


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _can_be_cut(cache: DynamicCache) -> bool:
    """Return whether the beginning of a cache is still there: sliding windows forget it."""
    return not any(getattr(layer, "is_sliding", False) for layer in cache.layers)
