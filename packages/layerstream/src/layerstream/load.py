"""Load: carry a plan out.

Layer: composition. Opens the model, lets planning decide, reads what stays, starts the stream for what does not, and puts the hooks on.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig

from .architecture.skeleton import load_generation_config, materialize_buffers
from .checkpoint.reader import DiskReader
from .decisions import PlacementPlan, Residency, UnitPlacement
from .facts import Machine, ModelProfile, TensorRecipe, UnitRecipe
from .machine import describe_machine, settle_device
from .model import StreamedModel
from .opening import OpenedModel, open_config, open_model
from .planning.placement import plan_placement
from .streaming.binding import StreamedModule, StreamHooks, UnitBinding, as_installed, places_of
from .streaming.buffers import HostBuffer
from .streaming.lanes import Lane
from .streaming.layout import PAGE
from .streaming.rows import RowTable, attach_rows
from .streaming.runtime import DeviceRuntime, TorchRuntime
from .streaming.sources import UnitSource
from .streaming.stream import StreamedUnit, WeightStream
from .timeline import Timeline
from .wishes import MemoryBudget, Workload

Budget = str | int | MemoryBudget


def plan(
    model: str | Path,
    *,
    budget: Budget = "auto",
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    workload: Workload | None = None,
    machine: Machine | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PlacementPlan:
    """Return where each block of a model would live on this machine, from config and headers only; no weight is read.

    Args:
        model: a directory or a Hub id.
        budget: `"auto"` (what is free here), `"min"` (the least that works), a size such as `"6 GiB"` for the device, or a `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        workload: batch, prompt and answer lengths to plan for.
        machine: plan for another machine than this one; `device` is then its.
        attn_implementation: transformers' name of the attention.
        revision: of a Hub id.
        trust_remote_code: run code from the repository; off unless asked.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        CheckpointError, ModelError, PlanError: what is wrong with the files, the model or the wish.
    """
    machine = machine or describe_machine(settle_device(device))
    opened = open_model(
        model,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        on_host=machine.device_is_host,
        weights=False,
    )
    return _plan_opened(opened, budget, workload, machine, attn_implementation)


def simulate(
    model: str | Path | PreTrainedConfig,
    *,
    machine: Machine,
    workload: Workload | None = None,
    budget: Budget = "auto",
    dtype: str | torch.dtype = "auto",
) -> PlacementPlan:
    """Return the plan for a machine one does not have.

    The planner is the simulator: this is what `load` would do there.

    Args:
        model: a directory, a Hub id or a transformers config.
        machine: the machine as numbers.
        workload: batch, prompt and answer lengths.
        budget: as for `plan`.
        dtype: the run dtype.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
    """
    opened = _open_any(model, dtype, on_host=machine.device_is_host)
    return _plan_opened(opened, budget, workload, machine, None)


def profile_model(model: str | Path | PreTrainedConfig, *, dtype: str | torch.dtype = "auto", device: str = "cpu") -> ModelProfile:
    """Return a model as numbers: parameters, bytes of every block, how memory grows with tokens. No weight is read.

    Args:
        model: a directory, a Hub id or a transformers config.
        dtype: the run dtype.
        device: the kind of device to lay slots out for; it need not exist here.
    """
    return _open_any(model, dtype, on_host=device.split(":")[0] == "cpu").profile


def _open_any(model: str | Path | PreTrainedConfig, dtype: str | torch.dtype, *, on_host: bool) -> OpenedModel:
    if isinstance(model, PreTrainedConfig):
        return open_config(model, dtype=dtype, on_host=on_host)
    return open_model(model, dtype=dtype, on_host=on_host, weights=False)


def _plan_opened(
    opened: OpenedModel, budget: Budget, workload: Workload | None, machine: Machine, attn_implementation: str | None
) -> PlacementPlan:
    wish = budget if isinstance(budget, MemoryBudget) else MemoryBudget(device=budget)
    return plan_placement(
        profile=opened.profile,
        budget=wish,
        workload=workload or Workload(attention=attn_implementation or "sdpa"),
        machine=machine,
    )


def load(
    model: str | Path,
    *,
    budget: Budget = "auto",
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    workload: Workload | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    runtime: DeviceRuntime | None = None,
) -> StreamedModel:
    """Load a causal language model within a memory budget, exactly.

    What fits stays in memory; the rest is read from the original safetensors in every sweep. Use it as a context manager, or call
    `close()`.

    Args:
        model: a directory or a Hub id.
        budget: `"auto"` (what is free here), `"min"` (the least that works), a size such as `"6 GiB"` for the device, or a `MemoryBudget`.
        device: torch device string; `"auto"` is the accelerator if there is one.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        workload: batch, prompt and answer lengths to keep room for.
        attn_implementation: transformers' name of the attention.
        revision: of a Hub id.
        trust_remote_code: run code from the repository; off unless asked.
        runtime: the device's operations; for tests.

    Returns:
        The streamed model; its `.model` is transformers' own.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        CheckpointError, ModelError, PlanError: what is wrong with the files, the model or the wish.
        ReadFailedError: the disk did not give what it holds.
    """
    baseline_bytes = psutil.Process().memory_info().rss
    runtime = runtime or TorchRuntime(settle_device(device))
    machine = replace(describe_machine(runtime.device), device=runtime.name)
    opened = open_model(
        model,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
        on_host=runtime.is_host,
    )
    decided = _plan_opened(opened, budget, workload, machine, attn_implementation)
    with ExitStack() as on_failure:
        builder = _Builder(opened, decided, runtime, on_failure)
        streamed = builder.build(baseline_bytes)
        on_failure.pop_all()
    return streamed


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

    def build(self, baseline_bytes: int) -> StreamedModel:
        """Make everything, the stream last, so that nothing runs before all is in place."""
        load_generation_config(self.model, self.opened.directory)
        materialize_buffers(self.model, self.runtime.device, set(self.opened.recipe.tensors))
        self._make_residents()
        detach_rows, tables = self._attach_rows()
        stream, hooks = self._start_stream()
        self.model.hf_device_map = self._device_map()
        return StreamedModel(
            model=self.model,
            plan=self.plan,
            profile=self.opened.profile,
            timeline=self.timeline,
            runtime=self.runtime,
            reader=self.reader,
            stream=stream,
            hooks=hooks,
            detach_rows=detach_rows,
            tables=tables,
            baseline_bytes=baseline_bytes,
        )

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
        for unit in staying:
            if unit.tensors:
                self._install_for_good(unit)
        self._share_ties()

    def _blocks(self) -> Iterable[UnitPlacement]:
        return [placement for placement in self.plan.units if placement.name in self.recipes]

    def _head(self) -> UnitPlacement | None:
        head = self.opened.units.head
        return next((p for p in self.plan.units if head is not None and p.name == head.name), None)

    def _install_for_good(self, unit: UnitRecipe) -> None:
        source = UnitSource(unit)
        buffer = self._read(source)
        if self.runtime.is_host:
            views = source.host_views(buffer.bytes)
        else:
            memory = self.runtime.allocate(source.layout.device_bytes)
            self.lane.copy_runs(buffer.bytes, source.layout, memory)
            self.lane.finish()
            views = source.device_views(memory)
        for tensor in unit.tensors:
            place, name = places_of(self.model, tensor)
            place[name] = as_installed(views[tensor.name], is_buffer=tensor.is_buffer)

    def _read(self, source: UnitSource, *, pinned: bool = False) -> HostBuffer:
        buffer = HostBuffer.allocate(source.layout.host_bytes, pinned=pinned)
        self.reader.submit(source.requests(buffer)).wait()
        source.convert(buffer, self.reader)
        return buffer

    def _share_ties(self) -> None:
        """Let tied names hold the very tensor they share, wherever that one stays for good."""
        for name, source_name in self.opened.recipe.tied.items():
            here, attribute = places_of(self.model, self.opened.recipe.tensors[name])
            there, source_attribute = places_of(self.model, self.opened.recipe.tensors[source_name])
            one, other = here[attribute], there[source_attribute]
            if one.is_meta and not other.is_meta and self._stays(name):
                here[attribute] = other
            elif other.is_meta and not one.is_meta and self._stays(source_name):
                there[source_attribute] = one

    def _stays(self, name: str) -> bool:
        """Whether a tensor is not one of the stream's."""
        moving = {tensor.name for unit in self._moving_recipes() for tensor in unit.tensors}
        rows = set() if self.plan.embedding in (None, Residency.DEVICE) else {t.name for t in self.opened.units.row_tables}
        return name not in moving | rows

    # -- what is looked up -------------------------------------------------------------------------------------------

    def _attach_rows(self) -> tuple[list[object], list[RowTable]]:
        if self.plan.embedding in (None, Residency.DEVICE):
            return [], []
        detach, tables = [], []
        for tensor in self.opened.units.row_tables:
            host = self._host_table(tensor) if self.plan.embedding is Residency.HOST else None
            table = RowTable(tensor, self.reader, host)
            detach.append(attach_rows(self.model, tensor, table, self.runtime.device))
            tables.append(table)
        return detach, tables

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

    def _start_stream(self) -> tuple[WeightStream | None, StreamHooks | None]:
        recipes = self._moving_recipes()
        if not recipes:
            return None, None
        units = [self._streamed_unit(recipe, position) for position, recipe in enumerate(recipes)]
        if not self.runtime.is_host:
            self.lane.allocate(self.plan.num_slots, self.plan.slot_bytes)
        num_buffers = self.plan.num_slots if self.runtime.is_host else self.plan.num_staging
        buffer_bytes = max(unit.source.layout.host_bytes for unit in units)
        stream = WeightStream(
            units, self.lane, self.reader, num_buffers=num_buffers, buffer_bytes=buffer_bytes, timeline=self.timeline
        )
        self.on_failure.callback(stream.close)
        hooks = StreamHooks(stream, self.timeline)
        self._attach(hooks, recipes)
        return stream, hooks

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
            if 0 <= start and wanted.offset + wanted.num_bytes <= whole.offset + whole.num_bytes:
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


