"""Build: carry a plan out, step by step.

Layer: composition. Reads what stays, attaches what is looked up, and starts the stream for what moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from .architecture.skeleton import load_generation_config, materialize_buffers
from .checkpoint.reader import DiskReader
from .decisions import PlacementPlan, Residency, UnitPlacement
from .facts import ModelProfile, TensorRecipe, UnitRecipe
from .kept_apart import OwnState
from .opening import OpenedModel
from .streaming.binding import StreamedModule, StreamHooks, UnitBinding, as_installed, places_of
from .streaming.buffers import HostBuffer, allocate_many
from .streaming.lanes import Lane
from .streaming.layout import PAGE
from .streaming.rows import RowTable, attach_rows
from .streaming.runtime import DeviceRuntime
from .streaming.sources import UnitSource
from .streaming.stream import StreamedUnit, WeightStream
from .streaming.sweep import SweepGroup
from .timeline import Timeline


@dataclass(slots=True, kw_only=True)
class BuiltModel:
    """A model with everything that moves its weights.

    Attributes:
        model: the real `PreTrainedModel`, with hooks on.
        plan: where everything lives.
        profile: the model as numbers.
        timeline: what happened when.
        runtime: the device's operations.
        reader: reads the disk.
        group: lets computations share sweeps.
        stream: supplies what moves; None when everything stays.
        hooks: brings and releases what moves; None when everything stays.
        tables: embeddings that are looked up row by row.
        detach: what takes those embeddings, and all else that was put on single modules, off again.
    """

    model: PreTrainedModel
    plan: PlacementPlan
    profile: ModelProfile
    timeline: Timeline
    runtime: DeviceRuntime
    reader: DiskReader
    group: SweepGroup
    stream: WeightStream | None = None
    hooks: StreamHooks | None = None
    tables: list[RowTable] = field(default_factory=list)
    detach: list[Callable[[], None]] = field(default_factory=list)


def build(opened: OpenedModel, plan: PlacementPlan, runtime: DeviceRuntime) -> BuiltModel:
    """Return the model of `opened` as `plan` has it.

    Raises:
        ReadFailedError: the disk did not give what it holds; nothing is left behind.
    """
    with ExitStack() as on_failure:
        built = _Builder(opened, plan, runtime, on_failure).build()
        on_failure.pop_all()
    return built


class _Builder:
    """Carries one plan out, step by step; what it opened is closed again when a step fails."""

    def __init__(self, opened: OpenedModel, decided: PlacementPlan, runtime: DeviceRuntime, on_failure: ExitStack) -> None:
        self.opened, self.plan, self.runtime, self.on_failure = opened, decided, runtime, on_failure
        self.model = opened.model
        self.timeline = Timeline()
        self.reader = DiskReader()
        on_failure.callback(self.reader.close)
        self.recipes = {unit.name: unit for unit in opened.units.streamed[decided.granularity]}
        self.lane = Lane(runtime=runtime)
        self.host_tables: dict[str, HostBuffer] = {}

    def build(self) -> BuiltModel:
        """Make everything, the stream last, so that nothing runs before all is in place."""
        load_generation_config(self.model, self.opened.directory)
        materialize_buffers(self.model, self.runtime.device, set(self.opened.recipe.tensors))
        self._make_residents()
        built = BuiltModel(
            model=self.model,
            plan=self.plan,
            profile=self.opened.profile,
            timeline=self.timeline,
            runtime=self.runtime,
            reader=self.reader,
            group=SweepGroup(OwnState(self.model, self.runtime.device, self.opened.state)),
        )
        for module in self.opened.chunked:
            built.detach.append(partial(module.__dict__.pop, "forward", None))
        self._attach_rows(built)
        self._start_stream(built)
        self.model.hf_device_map = self._device_map()
        return built

    # -- what stays --------------------------------------------------------------------------------------------------

    def _make_residents(self) -> None:
        units = self.opened.units
        staying = [self.recipes[p.name] for p in self._blocks() if p.residency is Residency.DEVICE]
        edges = list(units.edges[self.plan.granularity].tensors)
        if self.plan.embedding in (None, Residency.DEVICE):
            edges += units.row_tables
        conversions = units.edges[self.plan.granularity].conversions
        staying.append(UnitRecipe(name="edges", tensors=tuple(edges), conversions=conversions))
        head = self._head()
        if units.head is not None and (head is None or head.residency is Residency.DEVICE):
            installed = {tensor.name for tensor in edges} if units.head_is_tied else set()
            own = [t for t in units.head.tensors if not (units.head_is_tied and t.name.endswith(".weight") and installed)]
            staying.append(UnitRecipe(name=units.head.name, tensors=tuple(own), conversions=units.head.conversions))
        self._install_for_good([UnitSource(unit) for unit in staying if unit.tensors])
        self._share_ties()

    def _blocks(self) -> Iterable[UnitPlacement]:
        return [placement for placement in self.plan.units if placement.name in self.recipes]

    def _head(self) -> UnitPlacement | None:
        head = self.opened.units.head
        return next((p for p in self.plan.units if head is not None and p.name == head.name), None)

    def _install_for_good(self, sources: list[UnitSource]) -> None:
        if self.runtime.is_host:
            memory = allocate_many([source.layout.host_bytes for source in sources])
            for source, buffer in zip(sources, memory, strict=True):
                self._put_in_place(source, source.host_views(self._read_into(buffer, source).bytes))
            return
        for source in sources:
            buffer = self._read(source)
            device_memory = self.runtime.allocate(source.layout.device_bytes)
            self.lane.copy_runs(buffer.bytes, source.layout, device_memory)
            self.lane.finish()
            self._put_in_place(source, source.device_views(device_memory))

    def _put_in_place(self, source: UnitSource, views: dict[str, torch.Tensor]) -> None:
        for tensor in source.unit.tensors:
            place, name = places_of(self.model, tensor)
            place[name] = as_installed(views[tensor.name], is_buffer=tensor.is_buffer)

    def _read(self, source: UnitSource, *, pinned: bool = False) -> HostBuffer:
        return self._read_into(HostBuffer.allocate(source.layout.host_bytes, pinned=pinned), source)

    def _read_into(self, buffer: HostBuffer, source: UnitSource) -> HostBuffer:
        self.reader.submit(source.requests(buffer)).wait()
        source.convert(buffer, self.reader)
        return buffer

    def _share_ties(self) -> None:
        """Let tied names hold the very tensor they share, wherever that one stays for good."""
        elsewhere = self._not_staying()
        for name, source_name in self.opened.recipe.tied.items():
            here, attribute = places_of(self.model, self.opened.recipe.tensors[name])
            there, source_attribute = places_of(self.model, self.opened.recipe.tensors[source_name])
            one, other = here[attribute], there[source_attribute]
            if one.is_meta and not other.is_meta and name not in elsewhere:
                here[attribute] = other
            elif other.is_meta and not one.is_meta and source_name not in elsewhere:
                there[source_attribute] = one

    def _not_staying(self) -> set[str]:
        """Return the tensors that come and go: the stream's, and rows that are looked up."""
        rows = () if self.plan.embedding in (None, Residency.DEVICE) else self.opened.units.row_tables
        return {tensor.name for unit in self._moving_recipes() for tensor in unit.tensors} | {tensor.name for tensor in rows}

    # -- what is looked up -------------------------------------------------------------------------------------------

    def _attach_rows(self, built: BuiltModel) -> None:
        if self.plan.embedding in (None, Residency.DEVICE):
            return
        for tensor in self.opened.units.row_tables:
            host = self._host_table(tensor) if self.plan.embedding is Residency.HOST else None
            table = RowTable(tensor, self.reader, host)
            built.detach.append(attach_rows(self.model, tensor, table, self.runtime.device))
            built.tables.append(table)

    def _host_table(self, tensor: TensorRecipe) -> torch.Tensor:
        source = UnitSource(UnitRecipe(name=tensor.name, tensors=(tensor,)))
        self.host_tables[tensor.name] = self._read(source, pinned=self.runtime.pins_host_memory)
        return source.host_views(self.host_tables[tensor.name].bytes)[tensor.name]

    # -- what moves --------------------------------------------------------------------------------------------------

    def _moving_recipes(self) -> list[UnitRecipe]:
        recipes = [self.recipes[p.name] for p in self._blocks() if p.residency is not Residency.DEVICE]
        head = self._head()
        if head is not None and head.residency is not Residency.DEVICE:
            recipes += self.opened.units.head_slices(self.plan.head_slices)
        return recipes

    def _start_stream(self, built: BuiltModel) -> None:
        recipes = self._moving_recipes()
        if not recipes:
            return
        units = [self._streamed_unit(recipe, position) for position, recipe in enumerate(recipes)]
        if not self.runtime.is_host:
            self.lane.allocate(self.plan.num_slots, self.plan.slot_bytes)
        num_buffers = self.plan.num_slots if self.runtime.is_host else self.plan.num_staging
        buffer_bytes = max(unit.source.layout.host_bytes for unit in units)
        stream = WeightStream(
            units, self.lane, self.reader, num_buffers=num_buffers, buffer_bytes=buffer_bytes, timeline=self.timeline
        )
        self.on_failure.callback(stream.close)
        built.stream, built.hooks = stream, StreamHooks(stream, self.timeline, built.group)
        self._attach(built.hooks, recipes)

    def _streamed_unit(self, recipe: UnitRecipe, position: int) -> StreamedUnit:
        placement = next(p for p in self.plan.units if recipe.name == p.name or recipe.name.startswith(f"{p.name}["))
        source = UnitSource(recipe)
        pinned = None
        if placement.residency is Residency.HOST:
            pinned = self._part_of_host_table(source) or self._read(source, pinned=self.runtime.pins_host_memory)
        return StreamedUnit(name=recipe.name, position=self.plan.units.index(placement), source=source, pinned=pinned)

    def _part_of_host_table(self, source: UnitSource) -> HostBuffer | None:
        """Return where a tied head, or a slice of one, lies in its embedding's table, when that is in host memory."""
        wanted = source.unit.tensors[0].pieces[0].source if source.unit.tensors[0].pieces else None
        for table in self.opened.units.row_tables:
            whole, buffer = table.pieces[0].source, self.host_tables.get(table.name)
            same = wanted is not None and wanted.path == whole.path and wanted.dtype == table.dtype == whole.dtype
            if buffer is None or wanted is None or not same or len(source.unit.tensors) > 1:
                continue
            start = wanted.offset - whole.offset
            if start >= 0 and wanted.offset + wanted.num_bytes <= whole.offset + whole.num_bytes:
                # Both lie congruent to the file, so the slice's page starts on one of the table's.
                page = start + whole.offset % PAGE - wanted.offset % PAGE
                return HostBuffer.over(buffer.bytes[page : page + source.layout.host_bytes])
        return None

    def _attach(self, hooks: StreamHooks, recipes: list[UnitRecipe]) -> None:
        whole = [(i, r) for i, r in enumerate(recipes) if "[" not in r.name]
        sliced = [(i, r) for i, r in enumerate(recipes) if "[" in r.name]
        hooks.attach(
            StreamedModule(index=i, module=self.model.get_submodule(r.name), binding=UnitBinding(self.model, r.tensors))
            for i, r in whole
        )
        if sliced:
            head = self.model.get_submodule(sliced[0][1].name.partition("[")[0])
            assert isinstance(head, nn.Linear)
            hooks.slice_linear(head, [(i, UnitBinding(self.model, r.tensors)) for i, r in sliced])

    def _device_map(self) -> dict[str, str]:
        """Tell transformers that placement is taken care of: it then neither moves the model nor compiles it by itself."""
        where = {Residency.DEVICE: str(self.runtime.device), Residency.HOST: "cpu", Residency.DISK: "disk"}
        moving = {p.name: where[p.residency] for p in self.plan.units if p.residency is not Residency.DEVICE}
        return {"": str(self.runtime.device), **moving}
