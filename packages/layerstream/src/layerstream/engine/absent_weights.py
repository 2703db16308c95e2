"""Put absent weights in the places of all weights that do not stay in memory; free all weights at the end."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from ..architecture.recipe import ModelRecipe
from ..checkpoint.reader import DiskReader
from ..spec.profiles import UnitRecipe
from ..streaming.absent_weight import AbsentWeight, GuardedTensors
from ..streaming.binding import places_of
from ..streaming.buffers import HostBuffer
from ..streaming.sources import Fill, UnitSource, read_all


def place_absent_weights(
    model: nn.Module, recipe: ModelRecipe, names: Iterable[str], reader: DiskReader, device: torch.device
) -> None:
    """Put an `AbsentWeight` in the place of each tensor in `names`; tied names share one."""
    absent: dict[str, AbsentWeight] = {}
    for name in names:
        tensor = recipe.tensors[name]
        source = recipe.tied.get(name, name)
        if source not in absent:
            # Not what is there: some models make a few parameters off the meta device, and in fp32.
            like = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta")
            read = partial(_read, recipe, name, reader, device)
            absent[source] = AbsentWeight(name, like, device, read, is_parameter=not tensor.is_buffer)
            absent[source]._is_hf_initialized = True  # type: ignore[attr-defined]
        _guard(model.get_submodule(name.rpartition(".")[0]))
        tensors, attribute = places_of(model, name)
        assert isinstance(tensors, GuardedTensors)
        tensors.put(attribute, absent[source])


def _read(recipe: ModelRecipe, name: str, reader: DiskReader, device: torch.device) -> torch.Tensor:
    """Return one weight, read and converted in memory of its own."""
    conversion = recipe.conversions.get(name)
    conversions = () if conversion is None else (conversion,)
    source = UnitSource(UnitRecipe(name=name, tensors=(recipe.tensors[name],), conversions=conversions))
    fill = Fill.host(source, HostBuffer.allocate(source.layout.host_bytes))
    read_all([fill], reader)
    return fill.targets[0][name].to(device)


def _guard(module: nn.Module) -> None:
    for kind in ("_parameters", "_buffers"):
        if not isinstance(module.__dict__[kind], GuardedTensors):
            module.__dict__[kind] = GuardedTensors(module, module.__dict__[kind])


def unload_weights(model: nn.Module) -> None:
    """Put meta tensors in place of all weights, which frees their memory."""
    for module in model.modules():
        if isinstance(module._buffers, GuardedTensors):
            module.__dict__["_buffers"] = {
                name: tensor.on_meta() if isinstance(tensor, AbsentWeight) else tensor
                for name, tensor in module._buffers.items()
            }
        module.__dict__["_parameters"] = {
            name: None if tensor is None else _on_meta(tensor) for name, tensor in module._parameters.items()
        }


def _on_meta(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, AbsentWeight):
        return parameter.on_meta()
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
