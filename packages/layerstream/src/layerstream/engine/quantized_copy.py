"""A copy of a model with fewer bits, which stays in memory; making it reads the checkpoint once.

Each unit is read, its linear layers are rounded, and what was read is freed before the next unit comes.
Embeddings, norms, the head and everything else that is not a block's linear layer are not rounded to fewer
bits than the copy's dtype. Room: engine.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from ..architecture.linears import linear_weights
from ..architecture.skeleton import materialize_buffers
from ..planning.drafting import can_be_low_bit
from ..spec.options import OwnCopy
from ..spec.plans import Granularity
from ..spec.profiles import UnitRecipe
from ..streaming.binding import as_installed, places_of
from ..streaming.runtime import DeviceRuntime
from .inspect import ModelSpec
from .low_bit_linear import linear_maker
from .replica_builder import share_ties
from .resident_copy import StoredWeights


def quantized_copy(spec: ModelSpec, kind: OwnCopy, runtime: DeviceRuntime) -> PreTrainedModel:
    """Turn the model of `spec` into the copy, with linear layers of `kind` on the device, and return it.

    Raises:
        PlanError: a library is missing.
        ReadFailedError: the disk did not return the bytes it holds.
    """
    make_linear, model, stored = linear_maker(kind), spec.model, StoredWeights(runtime)
    materialize_buffers(model, runtime.device, set(spec.recipe.tensors))
    linears = {
        name
        for name, tensor in linear_weights(model, spec.units.streamed[Granularity.BLOCK]).items()
        if can_be_low_bit(kind, *tensor.shape)
    }
    for unit in _units(spec):
        weights = stored.load(unit)
        for tensor in unit.tensors:
            path, _, attribute = tensor.name.rpartition(".")
            if tensor.name in linears:
                bias = weights.get(f"{path}.bias")
                own_bias = None if bias is None else _own(bias)
                model.set_submodule(path, make_linear(weights[tensor.name], own_bias))
            elif not (attribute == "bias" and f"{path}.weight" in linears):
                place, name = places_of(model, tensor.name)
                place[name] = as_installed(_own(weights[tensor.name]), is_buffer=tensor.is_buffer)
    share_ties(model, spec.recipe.tied)
    return model.eval()


def _units(spec: ModelSpec) -> Iterator[UnitRecipe]:
    units = spec.units
    yield units.edges[Granularity.BLOCK]
    for table in units.row_tables:
        yield UnitRecipe(name=table.name, tensors=(table,))
    yield from units.streamed[Granularity.BLOCK]
    if units.head is not None and not units.head_is_tied:
        yield units.head


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in its own memory: what safetensors returns may lie in the mapped file."""
    return tensor.clone()
