"""One device's model, being put together: what stays goes into its places, hooks bring what moves.

Layer: composition. Knows one replica; what is read, and that others may share it, is the business of `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture.skeleton import load_generation_config, materialize_buffers
from ..checkpoint.reader import DiskReader
from ..spec.plans import PlacementPlan, Residency
from ..spec.profiles import UnitRecipe
from ..streaming.binding import StreamedModule, StreamHooks, UnitBinding, as_installed, places_of
from ..streaming.device_buffers import DeviceBuffers
from ..streaming.embedding_rows import RowTable, attach_rows
from ..streaming.prefetcher import Prefetcher
from ..streaming.runtime import DeviceRuntime
from ..streaming.sources import UnitSource
from ..streaming.stream import WeightStream
from ..streaming.sweep_group import SweepGroup
from .inspect import ModelSpec
from .task_state import ModelTaskState


@dataclass(slots=True, kw_only=True)
class ReplicaParts:
    """One device's model with everything that moves its weights.

    Attributes:
        index: the replica's number.
        model: the real `PreTrainedModel`, with hooks on.
        runtime: the device's operations.
        replica: its slots.
        group: lets computations share its sweeps.
        stream: has ready what moves; None when everything stays.
        hooks: brings and releases what moves; None when everything stays.
        tables: embeddings that are looked up row by row.
        detach: what takes those embeddings, and all else that was put on single modules, off again.
    """

    index: int
    model: PreTrainedModel
    runtime: DeviceRuntime
    replica: DeviceBuffers
    group: SweepGroup
    stream: WeightStream | None = None
    hooks: StreamHooks | None = None
    tables: list[RowTable] = field(default_factory=list)
    detach: list[Callable[[], None]] = field(default_factory=list)

    def detach_all(self) -> None:
        """Take off whatever was put on the model."""
        if self.hooks is not None:
            self.hooks.detach()
        for detach in self.detach:
            detach()
        self.tables.clear()


class ReplicaBuilder:
    """Puts one replica together, step by step."""

    def __init__(self, spec: ModelSpec, plan: PlacementPlan, runtime: DeviceRuntime, index: int) -> None:
        """Take the skeleton, or another one for any replica but the first, and fill in what no checkpoint holds."""
        self._opened, self._plan, self._runtime = spec, plan, runtime
        model, chunked = (spec.model, spec.chunked) if index == 0 else spec.replicate()
        keep = ModelTaskState(model, runtime.device, spec.state, has_host_random=index == 0)
        self.built = ReplicaParts(
            index=index,
            model=model,
            runtime=runtime,
            replica=DeviceBuffers(runtime=runtime),
            group=SweepGroup(keep),
        )
        load_generation_config(model, spec.directory)
        materialize_buffers(model, runtime.device, set(spec.recipe.tensors))
        for module in chunked:
            self.built.detach.append(partial(module.__dict__.pop, "forward", None))

    def install(self, source: UnitSource, host: torch.Tensor) -> None:
        """Install a unit that stays: a CPU device looks into the host buffer itself, any other gets a copy."""
        if self._runtime.is_host:
            self._put_in_place(source, source.host_views(host))
            return
        memory = self._runtime.allocate(source.layout.device_bytes)
        self.built.replica.copy_runs(host, source.layout, memory)
        self.built.replica.finish()
        self._put_in_place(source, source.device_views(memory))

    def _put_in_place(self, source: UnitSource, views: dict[str, torch.Tensor]) -> None:
        for tensor in source.unit.tensors:
            place, name = places_of(self.built.model, tensor)
            place[name] = as_installed(views[tensor.name], is_buffer=tensor.is_buffer)

    def share_ties(self, elsewhere: set[str]) -> None:
        """Let tied names hold the very tensor they share, wherever that one stays for good (and is not `elsewhere`)."""
        tensors = self._opened.recipe.tensors
        for name, source_name in self._opened.recipe.tied.items():
            here, attribute = places_of(self.built.model, tensors[name])
            there, source_attribute = places_of(self.built.model, tensors[source_name])
            one, other = here[attribute], there[source_attribute]
            if one.is_meta and not other.is_meta and name not in elsewhere:
                here[attribute] = other
            elif other.is_meta and not one.is_meta and source_name not in elsewhere:
                there[source_attribute] = one

    def attach_rows(self, reader: DiskReader, host_tables: Mapping[str, torch.Tensor]) -> None:
        """Look the input embedding up row by row, in `host_tables` where it lives in host memory."""
        for tensor in self._opened.units.row_tables:
            table = RowTable(tensor, reader, host_tables.get(tensor.name))
            self.built.detach.append(attach_rows(self.built.model, tensor, table, self._runtime.device))
            self.built.tables.append(table)

    def attach_stream(self, prefetcher: Prefetcher, recipes: list[UnitRecipe]) -> WeightStream:
        """Allocate the slots and let hooks bring the units of `recipes`, in the prefetcher's order."""
        if not self._runtime.is_host:
            self.built.replica.allocate(self._plan.num_slots, self._plan.slot_bytes)
        stream = self.built.stream = WeightStream(prefetcher, self.built.replica, index=self.built.index)
        hooks = self.built.hooks = StreamHooks(stream, prefetcher.timeline, self.built.group)
        model = self.built.model
        whole = [(i, r) for i, r in enumerate(recipes) if "[" not in r.name]
        sliced = [(i, r) for i, r in enumerate(recipes) if "[" in r.name]
        hooks.attach(
            StreamedModule(index=i, module=model.get_submodule(r.name), binding=UnitBinding(model, r.tensors))
            for i, r in whole
        )
        if sliced:
            head = model.get_submodule(sliced[0][1].name.partition("[")[0])
            assert isinstance(head, nn.Linear)
            hooks.slice_linear(head, [(i, UnitBinding(model, r.tensors)) for i, r in sliced])
        return stream

    def finish(self) -> ReplicaParts:
        """Tell transformers that placement is taken care of: it then neither moves the model nor compiles it by itself."""
        where = {Residency.DEVICE: str(self._runtime.device), Residency.HOST: "cpu", Residency.DISK: "disk"}
        moving = {p.name: where[p.residency] for p in self._plan.units if p.residency is not Residency.DEVICE}
        self.built.model.hf_device_map = {"": str(self._runtime.device), **moving}
        return self.built
