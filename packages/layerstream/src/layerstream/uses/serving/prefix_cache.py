"""Keep the keys and values of earlier conversations, so that the next turn does not compute them again.

An answer that continues a kept cache is what transformers gives for the same prompt and the same cache. It is
not always what a service without this gives: the tokens pass through the model in other groups, and kernels
round other shapes differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from ...architecture.shared_prefix import why_not_shared
from ...model import StreamedModel
from ...spec.plans import LedgerKind
from ...spec.sizes import format_bytes

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
    """Caches of texts in host memory, never more than the plan reserves. Use it from one thread at a time.

    Attributes:
        num_bytes: what they take.
    """

    def __init__(self, model: PreTrainedModel, limit_bytes: int) -> None:
        """Keep at most `limit_bytes` of a model whose caches can be shared; see `why_not_shared`."""
        self.num_bytes = 0
        self._model, self._limit_bytes = model, limit_bytes
        self._kept: list[_Kept] = []  # the most recently used one is the last

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
        """Keep a text's cache, as much of it as the cache holds; the least recently used ones make room.

        The cache belongs to this object afterwards.
        """
        kept_ids = tuple(ids[: cache.get_seq_length()])
        if len(kept_ids) < LEAST_TOKENS or type(cache) is not DynamicCache:
            return
        size = _bytes_of(cache)
        if size > self._limit_bytes:
            return
        for known in [kept for kept in self._kept if kept_ids[: len(kept.ids)] == kept.ids]:
            self._remove(known)
        # first the room, then the copy: on a device of its own, the cache is in both memories for a moment
        while self.num_bytes + size > self._limit_bytes:
            self._remove(self._kept[0])
        _move(cache, torch.device("cpu"))
        self._kept.append(_Kept(ids=kept_ids, cache=cache, num_bytes=size))
        self.num_bytes += size

    def _remove(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self.num_bytes -= kept.num_bytes

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config.get_text_config(decoder=True))


def open_prefix_cache(streamed: StreamedModel) -> PrefixCache | None:
    """Return a cache of the size that the plan reserves; None if it reserves none.

    A model whose caches cannot be shared has no use for one; this warns, and returns None.
    """
    limit_bytes = streamed.plan.ledger.bytes_for(LedgerKind.PREFIX_CACHE)
    if not limit_bytes:
        return None
    if reason := why_not_shared(streamed.model):
        warnings.warn(
            f"no conversation is kept: {reason}; leave out prefix_cache, for which "
            f"{format_bytes(limit_bytes)} are reserved",
            stacklevel=3,
        )
        return None
    return PrefixCache(streamed.model, limit_bytes)


def _bytes_of(cache: DynamicCache) -> int:
    filled = [layer for layer in cache.layers if layer.get_seq_length()]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in filled)


def _move(cache: DynamicCache, device: torch.device) -> None:
    """Move a cache to a device, without what its tensors are only a part of."""
    for layer in cache.layers:
        if layer.get_seq_length():
            layer.keys, layer.values = (_moved(tensor, device) for tensor in (layer.keys, layer.values))


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device != device:
        return tensor.to(device)
    # after a prompt longer than a sliding window, its end is a view of the whole
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _can_be_cut(cache: DynamicCache) -> bool:
    """Return whether the beginning of a cache is still there: sliding windows forget it."""
    return not any(getattr(layer, "is_sliding", False) for layer in cache.layers)
