"""Build: carry a plan out, step by step.

Layer: composition. Reads what stays, once for all devices, and starts the prefetcher for what moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ..checkpoint.reader import DiskReader
from ..spec.plans import PlacementPlan, Residency, UnitPlacement
from ..spec.profiles import ModelProfile, TensorRecipe, UnitRecipe
from ..spec.timeline import Timeline
from ..streaming.buffers import HostBuffer, allocate_many
from ..streaming.fetches import StreamedUnit
from ..streaming.layout import PAGE
from ..streaming.prefetcher import Prefetcher
from ..streaming.runtime import DeviceRuntime
from ..streaming.sources import UnitSource
from .inspect import ModelSpec
from .replica_builder import ReplicaBuilder, ReplicaParts


@dataclass(slots=True, kw_only=True)
class BuiltModel:
    """A model on its devices, with everything that moves its weights.

    Attributes:
        plan: where everything lives.
        profile: the model as numbers.
        timeline: what happened when.
        reader: reads the disk.
        prefetcher: reads what moves, for all replicas; None when everything stays.
        replicas: each device's model.
    """

    plan: PlacementPlan
    profile: ModelProfile
    timeline: Timeline
    reader: DiskReader
    prefetcher: Prefetcher | None
    replicas: tuple[ReplicaParts, ...]


def build(spec: ModelSpec, plan: PlacementPlan, runtimes: Sequence[DeviceRuntime]) -> BuiltModel:
    """Return the model of `opened` as `plan` has it, on every device of `runtimes`.

    Raises:
        ReadFailedError: the disk did not give what it holds; nothing is left behind.
    """
    with ExitStack() as on_failure:
        built = _Builder(spec, plan, runtimes, on_failure).build()
        on_failure.pop_all()
    return built


class _Builder:
    """Carries one plan out, step by step; what it opened is closed again when a step fails."""

    def __init__(
        self,
        spec: ModelSpec,
        placement: PlacementPlan,
        runtimes: Sequence[DeviceRuntime],
        on_failure: ExitStack,
    ) -> None:
        self.spec, self.plan, self.on_failure = spec, placement, on_failure
        self.is_host = runtimes[0].is_host
        self.pins = any(runtime.pins_host_memory for runtime in runtimes)
        self.timeline = Timeline()
        self.reader = DiskReader()
        on_failure.callback(self.reader.close)
        self.recipes = {unit.name: unit for unit in spec.units.streamed[placement.granularity]}
        self.replicas = [
            ReplicaBuilder(spec, placement, runtime, index) for index, runtime in enumerate(runtimes)
        ]
        self.host_tables: dict[str, HostBuffer] = {}

    def build(self) -> BuiltModel:
        """Make everything, the prefetcher last, so that nothing runs before all is in place."""
        self._make_residents()
        self._attach_rows()
        prefetcher = self._start_prefetcher()
        return BuiltModel(
            plan=self.plan,
            profile=self.spec.profile,
            timeline=self.timeline,
            reader=self.reader,
            prefetcher=prefetcher,
            replicas=tuple(replica.finish() for replica in self.replicas),
        )

    # -- what stays --------------------------------------------------------------------------------------------------

    def _make_residents(self) -> None:
        units = self.spec.units
        staying = [self.recipes[p.name] for p in self._blocks() if p.residency is Residency.DEVICE]
        edges = list(units.edges[self.plan.granularity].tensors)
        if self.plan.embedding in (None, Residency.DEVICE):
            edges += units.row_tables
        conversions = units.edges[self.plan.granularity].conversions
        staying.append(UnitRecipe(name="edges", tensors=tuple(edges), conversions=conversions))
        head = self._head()
        if units.head is not None and (head is None or head.residency is Residency.DEVICE):
            installed = {tensor.name for tensor in edges} if units.head_is_tied else set()
            own = [
                t
                for t in units.head.tensors
                if not (units.head_is_tied and t.name.endswith(".weight") and installed)
            ]
            staying.append(
                UnitRecipe(name=units.head.name, tensors=tuple(own), conversions=units.head.conversions)
            )
        self._install_for_good([UnitSource(unit) for unit in staying if unit.tensors])
        elsewhere = self._not_staying()
        for replica in self.replicas:
            replica.share_ties(elsewhere)

    def _blocks(self) -> Iterable[UnitPlacement]:
        return [placement for placement in self.plan.units if placement.name in self.recipes]

    def _head(self) -> UnitPlacement | None:
        head = self.spec.units.head
        return next((p for p in self.plan.units if head is not None and p.name == head.name), None)

    def _install_for_good(self, sources: list[UnitSource]) -> None:
        """Read each unit once and install it in every replica. Lanes on the CPU look into the same memory."""
        memory: Iterable[HostBuffer | None] = [None] * len(sources)
        if self.is_host:
            memory = allocate_many([source.layout.host_bytes for source in sources])
        for source, own in zip(sources, memory, strict=True):
            buffer = self._read(source) if own is None else self._read_into(own, source)
            for replica in self.replicas:
                replica.install(source, buffer.bytes)

    def _read(self, source: UnitSource, *, pinned: bool = False) -> HostBuffer:
        return self._read_into(HostBuffer.allocate(source.layout.host_bytes, pinned=pinned), source)

    def _read_into(self, buffer: HostBuffer, source: UnitSource) -> HostBuffer:
        self.reader.submit(source.requests(buffer)).wait()
        source.convert(buffer, self.reader)
        return buffer

    def _not_staying(self) -> set[str]:
        """Return the tensors that come and go: the stream's, and rows that are looked up."""
        rows = () if self.plan.embedding in (None, Residency.DEVICE) else self.spec.units.row_tables
        return {tensor.name for unit in self._moving_recipes() for tensor in unit.tensors} | {
            tensor.name for tensor in rows
        }

    # -- what is looked up -------------------------------------------------------------------------------------------

    def _attach_rows(self) -> None:
        if self.plan.embedding in (None, Residency.DEVICE):
            return
        tables: dict[str, torch.Tensor] = {}
        if self.plan.embedding is Residency.HOST:
            tables = {tensor.name: self._host_table(tensor) for tensor in self.spec.units.row_tables}
        for replica in self.replicas:
            replica.attach_rows(self.reader, tables)

    def _host_table(self, tensor: TensorRecipe) -> torch.Tensor:
        source = UnitSource(UnitRecipe(name=tensor.name, tensors=(tensor,)))
        self.host_tables[tensor.name] = self._read(source, pinned=self.pins)
        return source.host_views(self.host_tables[tensor.name].bytes)[tensor.name]

    # -- what moves --------------------------------------------------------------------------------------------------

    def _moving_recipes(self) -> list[UnitRecipe]:
        recipes = [self.recipes[p.name] for p in self._blocks() if p.residency is not Residency.DEVICE]
        head = self._head()
        if head is not None and head.residency is not Residency.DEVICE:
            recipes += self.spec.units.head_slices(self.plan.head_slices)
        return recipes

    def _start_prefetcher(self) -> Prefetcher | None:
        recipes = self._moving_recipes()
        if not recipes:
            return None
        units = [self._streamed_unit(recipe) for recipe in recipes]
        prefetcher = Prefetcher(
            units,
            self.reader,
            num_buffers=self.plan.num_slots if self.is_host else self.plan.num_staging,
            buffer_bytes=max(unit.source.layout.host_bytes for unit in units),
            timeline=self.timeline,
            pinned=self.pins,
        )
        self.on_failure.callback(prefetcher.close)
        streams = []
        for replica in self.replicas:
            streams.append(replica.attach_stream(prefetcher, recipes))
            self.on_failure.callback(streams[-1].close)
        prefetcher.start(streams)
        return prefetcher

    def _streamed_unit(self, recipe: UnitRecipe) -> StreamedUnit:
        placement = next(
            p for p in self.plan.units if recipe.name == p.name or recipe.name.startswith(f"{p.name}[")
        )
        source = UnitSource(recipe)
        pinned = None
        if placement.residency is Residency.HOST:
            pinned = self._part_of_host_table(source) or self._read(source, pinned=self.pins)
        return StreamedUnit(
            name=recipe.name, position=self.plan.units.index(placement), source=source, pinned=pinned
        )

    def _part_of_host_table(self, source: UnitSource) -> HostBuffer | None:
        """Return where a tied head, or a slice of one, lies in its embedding's table, when that is in host memory."""
        wanted = source.unit.tensors[0].pieces[0].source if source.unit.tensors[0].pieces else None
        for table in self.spec.units.row_tables:
            whole, buffer = table.pieces[0].source, self.host_tables.get(table.name)
            same = (
                wanted is not None
                and wanted.path == whole.path
                and wanted.dtype == table.dtype == whole.dtype
            )
            if buffer is None or wanted is None or not same or len(source.unit.tensors) > 1:
                continue
            start = wanted.offset - whole.offset
            if start >= 0 and wanted.offset + wanted.num_bytes <= whole.offset + whole.num_bytes:
                # Both lie congruent to the file, so the slice's page starts on one of the table's.
                page = start + whole.offset % PAGE - wanted.offset % PAGE
                return HostBuffer.over(buffer.bytes[page : page + source.layout.host_bytes])
        return None
