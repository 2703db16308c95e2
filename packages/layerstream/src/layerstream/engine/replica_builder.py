"""Put one device's model together: weights that stay are installed, hooks acquire those that move.

It knows one replica. `build` knows what is read, and that other replicas may share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture import compat
from ..architecture.skeleton import load_generation_config, materialize_buffers
from ..checkpoint.reader import DiskReader
from ..spec.plans import PlacementPlan
from ..spec.profiles import UnitRecipe
from ..streaming.binding import StreamedModule, StreamHooks, UnitBinding, as_installed, places_of
from ..streaming.device_buffers import DeviceBuffers
from ..streaming.embedding_rows import RowTable, attach_rows
from ..streaming.prefetcher import Prefetcher
from ..streaming.runtime import DeviceRuntime
from ..streaming.sources import UnitSource
from ..streaming.stream import WeightStream
from ..streaming.sweep_group import SweepGroup
from .absent_weights import place_absent_weights
from .adapter_switch import AdapterSwitch
from .inspect import ModelSpec
from .task_state import ModelTaskState


@dataclass(slots=True, kw_only=True)
class ReplicaParts:
    """One device's model with everything that moves its weights.

    Attributes:
        index: the replica's place among the devices, from 0.
        model: the real `PreTrainedModel`, with hooks attached.
        runtime: the device's operations.
        buffers: the device's slots.
        group: lets tasks share the replica's sweeps.
        adapters: which adapter is active, for each of them.
        stream: delivers the units that move; None when everything stays.
        hooks: acquire and release those units; None when everything stays.
        tables: embeddings that are looked up row by row.
        undo: removes those embeddings and other patches from single modules.
    """

    index: int
    model: PreTrainedModel
    runtime: DeviceRuntime
    buffers: DeviceBuffers
    group: SweepGroup
    adapters: AdapterSwitch
    stream: WeightStream | None = None
    hooks: StreamHooks | None = None
    tables: list[RowTable] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    def detach_all(self) -> None:
        """Remove every hook and patch from the model."""
        if self.hooks is not None:
            self.hooks.detach()
        for undo in self.undo:
            undo()
        self.undo.clear()
        self.tables.clear()


class ReplicaBuilder:
    """Builds one replica, step by step."""

    def __init__(self, spec: ModelSpec, plan: PlacementPlan, runtime: DeviceRuntime, index: int) -> None:
        """Take the empty model (a copy of it for later replicas) and compute what no checkpoint holds."""
        self._spec, self._plan, self._runtime = spec, plan, runtime
        model, chunked = (spec.model, spec.chunked) if index == 0 else spec.replicate()
        task_state = ModelTaskState(model, runtime.device, spec.state, has_host_random=index == 0)
        self.parts = ReplicaParts(
            index=index,
            model=model,
            runtime=runtime,
            buffers=DeviceBuffers(runtime=runtime),
            group=SweepGroup(task_state),
            adapters=task_state.adapters,
        )
        load_generation_config(model, spec.directory, spec.options.subfolder)
        materialize_buffers(model, runtime.device, set(spec.recipe.tensors))
        for module in chunked:
            self.parts.undo.append(partial(module.__dict__.pop, "forward", None))

    def install(self, source: UnitSource, views: Mapping[str, torch.Tensor]) -> None:
        """Install the tensors of a unit that stays."""
        for tensor in source.unit.tensors:
            place, name = places_of(self.parts.model, tensor.name)
            place[name] = as_installed(views[tensor.name], is_buffer=tensor.is_buffer)

    def share_ties(self, moving: set[str]) -> None:
        """Let tied names share one tensor object wherever it stays; tensors in `moving` are left alone."""
        share_ties(self.parts.model, self._spec.recipe.tied, moving)

    def place_absent_weights(self, moving: set[str], reader: DiskReader) -> None:
        """Put absent weights in the places of those in `moving`, and of all that are not installed by now."""
        model, recipe = self.parts.model, self._spec.recipe
        places = {name: places_of(model, name) for name in recipe.tensors}
        names = [name for name, (place, key) in places.items() if name in moving or place[key].is_meta]
        place_absent_weights(model, recipe, names, reader, self._runtime.device)

    def attach_rows(self, reader: DiskReader, host_tables: Mapping[str, torch.Tensor]) -> None:
        """Look the input embedding up by row: in `host_tables` if it is in host memory, else on disk."""
        for tensor in self._spec.units.row_tables:
            table = RowTable(tensor, reader, host_tables.get(tensor.name))
            self.parts.undo.append(attach_rows(self.parts.model, tensor, table, self._runtime.device))
            self.parts.tables.append(table)

    def attach_stream(self, prefetcher: Prefetcher, recipes: list[UnitRecipe]) -> WeightStream:
        """Allocate slots and attach hooks that acquire the units of `recipes`, in the prefetcher's order."""
        if not self._runtime.is_host:
            self.parts.buffers.allocate(self._plan.num_slots, self._plan.slot_bytes)
        stream = self.parts.stream = WeightStream(prefetcher, self.parts.buffers, index=self.parts.index)
        hooks = self.parts.hooks = StreamHooks(stream, self.parts.group)
        model = self.parts.model
        bindings = [UnitBinding(model, recipe.tensors) for recipe in recipes]
        hooks.attach(
            StreamedModule(index=index, module=model.get_submodule(recipe.name), binding=bindings[index])
            for index, recipe in enumerate(recipes)
            if recipe.slice_of is None
        )
        slices = [
            (index, recipe.slice_of) for index, recipe in enumerate(recipes) if recipe.slice_of is not None
        ]
        if slices:
            head = model.get_submodule(slices[0][1])
            assert isinstance(head, nn.Linear)
            hooks.slice_linear(head, [(index, bindings[index]) for index, _ in slices])
        return stream

    def finish(self) -> ReplicaParts:
        """Tell transformers where the model is, so that it neither moves nor compiles it by itself."""
        self.parts.model.hf_device_map = {"": self._runtime.device}
        self.parts.undo.append(compat.never_compile(self.parts.model))
        return self.parts


def share_ties(model: nn.Module, tied: Mapping[str, str], moving: Set[str] = frozenset()) -> None:
    """Let tied names of a model share one tensor object, except those in `moving`.

    Args:
        model: the model, in which one of each two names is installed.
        tied: by tied name, the name whose tensor it shares.
        moving: tensors that do not stay.
    """
    for name, source_name in tied.items():
        here, attribute = places_of(model, name)
        there, source_attribute = places_of(model, source_name)
        own, source = here[attribute], there[source_attribute]
        if own.is_meta and not source.is_meta and name not in moving:
            here[attribute] = source
        elif source.is_meta and not own.is_meta and source_name not in moving:
            there[source_attribute] = own
