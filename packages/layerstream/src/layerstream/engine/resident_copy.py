"""Resident copies of single modules, whose weights come another way than those of the stream.

safetensors reads them, as it does for `from_pretrained`, and torch casts and copies them. Of layerstream's
own reading, layouts, slots and copies, nothing is used. Only the recipe is shared: which stored tensors make
which weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..checkpoint.arrivals import wait_for
from ..spec.profiles import StoredTensor, TensorRecipe, UnitRecipe
from ..streaming.absent_weight import AbsentWeight
from ..streaming.binding import as_installed
from ..streaming.buffers import typed_view
from ..streaming.layout import stored_as_used
from ..streaming.runtime import DeviceRuntime

_CHUNK_ELEMENTS = 1024**2
"""What is copied at once: torch casts what goes to an accelerator in host memory of its own."""


class ResidentCopy:
    """A copy of a module, with its absent weights still absent until `run`.

    What is resident already (adapters, small tensors) is shared with the module, not copied.
    """

    def __init__(self, module: nn.Module) -> None:
        """Copy the structure of `module` as it is now, with the state that it keeps between forwards."""
        own = [tensor for inner in module.modules() for tensor in _tensors_of(inner)]
        self._module = deepcopy(module, {id(tensor): tensor for tensor in own})

    def run(self, weights: Mapping[int, torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the module's output with `weights`, by the `id` of the absent weights that they stand for.

        The copy holds on to none of them afterwards.
        """
        places: list[tuple[dict[str, Any], str, AbsentWeight]] = [
            (place, name, tensor)
            for inner in self._module.modules()
            for place in (inner._parameters, inner._buffers)
            for name, tensor in place.items()
            if isinstance(tensor, AbsentWeight) and id(tensor) in weights
        ]
        installed = {id(absent): _installed(weights[id(absent)], absent) for _, _, absent in places}
        for place, name, absent in places:
            place[name] = installed[id(absent)]
        try:
            return self._module(*args, **kwargs)
        finally:
            for place, name, absent in places:
                place[name] = absent


def _tensors_of(module: nn.Module) -> Iterable[torch.Tensor]:
    state = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in state if tensor is not None]


def _installed(weight: torch.Tensor, absent: AbsentWeight) -> torch.Tensor:
    """Return `weight` as the plain model would have it, with the flag that the weight has now."""
    is_buffer = not isinstance(absent, nn.Parameter)
    installed = as_installed(weight, is_buffer=is_buffer)
    return installed if is_buffer else installed.requires_grad_(absent.requires_grad)


class StoredWeights:
    """The weights of units, loaded from the checkpoint as `from_pretrained` loads them."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        """Load onto the device of `runtime`."""
        self._runtime = runtime

    def load(self, unit: UnitRecipe, rows: slice | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors of `unit` in memory of their own, or some rows of each.

        On a CPU device, what is used as it is stored is used in place, from the mapped file. Each file is
        mapped anew for each tensor, so that the pages of one are dropped before those of the next come in.
        """
        converted: dict[str, torch.Tensor] = {}
        for conversion in unit.conversions:
            stored = {source.name: _stored(source) for source in conversion.sources}
            converted |= conversion.convert(stored)
        tensors = {}
        for tensor in unit.tensors:
            if tensor.name in converted:
                tensors[tensor.name] = self._own(tensor, [(0, converted.pop(tensor.name))])
            elif self._runtime.is_host and stored_as_used(tensor):
                tensors[tensor.name] = _rows_of(_stored(tensor.pieces[0].source), rows)
            else:
                pieces = ((p.start_element, _rows_of(_stored(p.source), rows)) for p in tensor.pieces)
                tensors[tensor.name] = self._own(tensor, pieces)
        return tensors

    def _own(self, tensor: TensorRecipe, pieces: Iterable[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """Return `tensor`, made of `pieces` that start at the given elements, in fresh memory."""
        if self._runtime.is_host:
            memory = torch.empty(tensor.num_bytes, dtype=torch.uint8)
        else:
            memory = self._runtime.allocate(tensor.num_bytes)
        whole = typed_view(memory, 0, tensor)
        flat = whole.view(-1)
        for start, piece in pieces:
            values = piece.reshape(-1)
            for first in range(0, values.numel(), _CHUNK_ELEMENTS):
                chunk = values[first : first + _CHUNK_ELEMENTS]
                flat[start + first : start + first + chunk.numel()].copy_(chunk)
        return whole


def _stored(source: StoredTensor) -> torch.Tensor:
    wait_for(source.path, None)
    with safe_open(source.path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(source.name)
    return tensor


def _rows_of(tensor: torch.Tensor, rows: slice | None) -> torch.Tensor:
    return tensor if rows is None else tensor[rows]


def whole_of(slices: Sequence[UnitRecipe]) -> UnitRecipe:
    """Return the recipe of the unit that was cut into `slices`, in order."""
    if slices[0].slice_of is None:
        return slices[0]
    tensors = []
    for parts in zip(*(unit.tensors for unit in slices), strict=True):
        rows = sum(part.shape[0] for part in parts)
        (piece,) = parts[0].pieces
        stored_bytes = sum(part.pieces[0].source.num_bytes for part in parts)
        source = replace(piece.source, shape=(rows, *piece.source.shape[1:]), num_bytes=stored_bytes)
        tensors.append(
            replace(
                parts[0],
                shape=(rows, *parts[0].shape[1:]),
                num_bytes=sum(part.num_bytes for part in parts),
                pieces=(replace(piece, source=source),),
            )
        )
    return UnitRecipe(name=slices[0].slice_of, tensors=tuple(tensors))
