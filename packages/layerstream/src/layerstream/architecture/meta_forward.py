"""Run a model on the meta device: which modules its forward calls, where it reads its weights, and what memory it takes.

Room: architecture. Runs the model's real forward on shapes alone. Some architectures decide by values and cannot be walked; then
nothing is learnt and the caller uses coarser answers.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from .weight_usage import WeightUsage, record_weight_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardMemory:
    """What one forward did.

    Attributes:
        num_tokens: the length of the prompt.
        peak_bytes: most memory alive at once beside parameters and buffers; the cache included.
        cache_bytes: what the cache holds afterwards, sliding-window layers apart.
        window_bytes: what sliding-window layers hold.
        window_tokens: the window; 0 without one.
        largest_layer_bytes: the largest cache layer.
    """

    num_tokens: int
    peak_bytes: int
    cache_bytes: int
    window_bytes: int
    window_tokens: int
    largest_layer_bytes: int


def walk(model: PreTrainedModel, num_tokens: int) -> ForwardMemory | None:
    """Run one prefill of `num_tokens` tokens (batch 1) on the meta device.

    Returns:
        What was seen, or None when this architecture's forward cannot run without values.
    """
    with _LiveBytes() as counter:
        output = forward_on_meta(model, num_tokens)
    if output is None:
        return None
    return _with_cache(num_tokens, counter.peak_bytes, getattr(output, "past_key_values", None))


def observe(model: PreTrainedModel) -> WeightUsage | None:
    """Return which modules one prefill and one decoded token call, and where each weight is read; None when they cannot be run."""
    return record_weight_usage(model, lambda num_tokens, cache: forward_on_meta(model, num_tokens, cache))


def forward_on_meta(model: PreTrainedModel, num_tokens: int, cache: Any = None) -> Any:
    """Return the output of one forward on shapes, as `generate()` would call it; None when it cannot run without values."""
    options: dict[str, Any] = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    if cache is not None:
        options["past_key_values"] = cache
    ids = torch.zeros((1, num_tokens), dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), _ResultsOnly(), torch.device("meta"):
            return model(input_ids=ids, use_cache=True, **options)
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        KeyError,
        AssertionError,
    ):
        return None


class _ResultsOnly(TorchFunctionMode):
    """Give attention and grouped products their result alone.

    The attention kernels in use hold no score matrix, the decomposition on meta tensors would; and grouped products on meta tensors
    refuse all dtypes but one.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            value = args[2] if len(args) > 2 else kwargs["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        if getattr(func, "__name__", "").endswith("grouped_mm"):
            return args[0].new_empty((args[0].shape[0], args[1].shape[-1]))
        return func(*args, **kwargs)


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of storages that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.untyped_storage()._cdata not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            if self._seen.pop(key, None) is not None:
                self.live_bytes -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


def _with_cache(num_tokens: int, peak_bytes: int, cache: Any) -> ForwardMemory:
    plain, windowed, window, largest = 0, 0, 0, 0
    for layer in getattr(cache, "layers", None) or ([cache] if cache is not None else []):
        size = sum(tensor.untyped_storage().nbytes() for tensor in _state_of(layer))
        largest = max(largest, size)
        if width := getattr(layer, "sliding_window", 0) or 0:
            windowed, window = windowed + size, max(window, width)
        else:
            plain += size
    return ForwardMemory(
        num_tokens=num_tokens,
        peak_bytes=peak_bytes,
        cache_bytes=plain,
        window_bytes=windowed,
        window_tokens=window,
        largest_layer_bytes=largest,
    )


def _state_of(layer: Any) -> list[torch.Tensor]:
    fields = vars(layer) if hasattr(layer, "__dict__") else {}
    found = {tensor.untyped_storage()._cdata: tensor for tensor in _tensors(list(fields.values()))}
    return list(found.values())
