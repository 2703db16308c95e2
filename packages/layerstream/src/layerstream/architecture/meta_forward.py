"""Run a model's real forward on the meta device, on shapes alone, and measure the memory it takes.

Room: architecture. Some architectures branch on values, so their forward cannot run on shapes; the caller
then uses coarser answers.
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

from . import compat


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardMemory:
    """The memory that one forward takes.

    Attributes:
        num_tokens: the length of the prompt.
        peak_bytes: the most memory alive at once, cache included, parameters and buffers excluded.
        cache_bytes: what the cache holds afterwards, except in sliding-window layers.
        window_bytes: what the cache holds in sliding-window layers.
        window_tokens: the window; 0 without one.
        largest_layer_bytes: the largest cache layer.
    """

    num_tokens: int
    peak_bytes: int
    cache_bytes: int
    window_bytes: int
    window_tokens: int
    largest_layer_bytes: int


def measure_forward(model: PreTrainedModel, num_tokens: int) -> ForwardMemory | None:
    """Return the memory that one prefill of `num_tokens` tokens (batch 1) takes, run on the meta device.

    Returns:
        The memory; None when this architecture's forward cannot run without values.
    """
    with _LiveBytes() as counter:
        output = forward_on_meta(model, num_tokens)
    if output is None:
        return None
    return _with_cache(num_tokens, counter.peak_bytes, compat.cache_of(model, output))


def forward_on_meta(model: PreTrainedModel, num_tokens: int, cache: Any = None) -> Any:
    """Return the output of one forward on shapes, called as `generate()` calls it.

    Returns:
        The output; None when this architecture's forward cannot run without values.
    """
    options: dict[str, Any] = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    if cache is not None:
        options |= compat.cache_argument(model, cache)
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
    """Replace attention and grouped matrix products with an empty tensor of the result's shape.

    The attention kernels in use hold no score matrix, but the decomposition on meta tensors would. Grouped
    products on meta tensors refuse all dtypes but one.
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
    """Count the bytes of the storages that operations allocated and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        inputs = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.untyped_storage()._cdata not in inputs:
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
    cache_bytes, window_bytes, window_tokens, largest_layer_bytes = 0, 0, 0, 0
    for layer in getattr(cache, "layers", None) or ([cache] if cache is not None else []):
        layer_bytes = _state_bytes(layer)
        largest_layer_bytes = max(largest_layer_bytes, layer_bytes)
        if window := getattr(layer, "sliding_window", 0) or 0:
            window_bytes, window_tokens = window_bytes + layer_bytes, max(window_tokens, window)
        else:
            cache_bytes += layer_bytes
    return ForwardMemory(
        num_tokens=num_tokens,
        peak_bytes=peak_bytes,
        cache_bytes=cache_bytes,
        window_bytes=window_bytes,
        window_tokens=window_tokens,
        largest_layer_bytes=largest_layer_bytes,
    )


def _state_bytes(layer: Any) -> int:
    fields = vars(layer) if hasattr(layer, "__dict__") else {}
    storages = [tensor.untyped_storage() for tensor in _tensors(list(fields.values()))]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
