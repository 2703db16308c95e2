"""Carry out a plan: read the weights that stay, once for all devices, and prefetch those that move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ..checkpoint.reader import DiskReader
from ..spec.options import LoadOptions
from ..spec.plans import PlacementPlan, Residency, UnitPlacement
from ..spec.profiles import ModelProfile, TensorRecipe, UnitRecipe
from ..spec.timeline import Timeline
from ..streaming.buffers import HostBuffer, allocate_many
from ..streaming.fetches import StreamedUnit
from ..streaming.layout import PAGE
from ..streaming.prefetcher import Prefetcher
from ..streaming.runtime import DeviceRuntime
from ..streaming.sources import UnitSource
from .adapters import Adapter
from .inspect import ModelSpec
from .replica_builder import ReplicaBuilder, ReplicaParts


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A model on its devices, with everything that moves its weights.

    Attributes:
        options: how the user wanted it loaded.
        plan: where everything lives.
        profile: the model's sizes.
        timeline: what happened when.
        reader: reads the disk.
        prefetcher: reads the units that move, for all replicas; None when everything stays.
        replicas: the parts of each device's replica.
        adapters: what must still be put on each replica's model.
    """

    options: LoadOptions
    plan: PlacementPlan
    profile: ModelProfile
    timeline: Timeline
    reader: DiskReader
    prefetcher: Prefetcher | None
    replicas: tuple[ReplicaParts, ...]
    adapters: tuple[Adapter, ...]


def build(spec: ModelSpec, plan: PlacementPlan, runtimes: Sequence[DeviceRuntime]) -> BuiltModel:
    """Return the model of `spec`, placed as `plan` says, on every device of `runtimes`.

    Raises:
        ReadFailedError: the disk did not return the bytes it holds; nothing is left behind.
    """
    with ExitStack() as on_failure:
        built = _Builder(spec, plan, runtimes, on_failure).build()
        on_failure.pop_all()
    return built


class _Builder:
    """Carries out one plan, step by step. When a step fails, everything opened so far is closed."""

    def __init__(
        self, spec: ModelSpec, plan: PlacementPlan, runtimes: Sequence[DeviceRuntime], on_failure: ExitStack
    ) -> None:
        self.spec, self.plan, self.on_failure = spec, plan, on_failure
        self.is_host = runtimes[0].is_host
        self.pins = any(runtime.pins_host_memory for runtime in runtimes)
        self.timeline = Timeline()
        self.reader = DiskReader()
        on_failure.callback(self.reader.close)
        self.recipes = {unit.name: unit for unit in spec.units.streamed[plan.granularity]}
        self.replicas = [ReplicaBuilder(spec, plan, runtime, index) for index, runtime in enumerate(runtimes)]
        self.host_tables: dict[str, HostBuffer] = {}

    def build(self) -> BuiltModel:
        """Build everything, and start the prefetcher last, when all that it feeds is in place."""
        self._make_residents()
        moving = self._moving_names()
        for replica in self.replicas:
            replica.place_absent_weights(moving, self.reader)
        self._attach_rows()
        prefetcher = self._start_prefetcher()
        return BuiltModel(
            options=self.spec.options,
            plan=self.plan,
            profile=self.spec.profile,
            timeline=self.timeline,
            reader=self.reader,
            prefetcher=prefetcher,
            replicas=tuple(replica.finish() for replica in self.replicas),
            adapters=self.spec.adapters,
        )

    # -- weights that stay ---------------------------------------------------------------------------------

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
            staying.append(self._resident_head(units.head, has_edges=bool(edges)))
        self._install_residents([UnitSource(unit) for unit in staying if unit.tensors])
        moving = self._moving_names()
        for replica in self.replicas:
            replica.share_ties(moving)

    def _resident_head(self, head: UnitRecipe, *, has_edges: bool) -> UnitRecipe:
        """Return the head without a weight that is tied to the embedding, which the edges already hold."""
        is_held = self.spec.units.head_is_tied and has_edges
        own = tuple(t for t in head.tensors if not (is_held and t.name.endswith(".weight")))
        return UnitRecipe(name=head.name, tensors=own, conversions=head.conversions)

    def _blocks(self) -> Iterable[UnitPlacement]:
        return [placement for placement in self.plan.units if placement.name in self.recipes]

    def _head(self) -> UnitPlacement | None:
        head = self.spec.units.head
        return next((p for p in self.plan.units if head is not None and p.name == head.name), None)

    def _install_residents(self, sources: list[UnitSource]) -> None:
        """Read each unit once and install it in every replica. Replicas on the CPU share the memory."""
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

    def _moving_names(self) -> set[str]:
        """Return the tensors that move: those of the stream, and embeddings looked up by row."""
        rows = () if self.plan.embedding in (None, Residency.DEVICE) else self.spec.units.row_tables
        streamed = {tensor.name for unit in self._moving_recipes() for tensor in unit.tensors}
        return streamed | {tensor.name for tensor in rows}

    # -- embeddings that are looked up by row --------------------------------------------------------------

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

    # -- units that move -----------------------------------------------------------------------------------

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
        placement = next(p for p in self.plan.units if p.name == (recipe.slice_of or recipe.name))
        source = UnitSource(recipe)
        pinned = None
        if placement.residency is Residency.HOST:
            pinned = self._part_of_host_table(source) or self._read(source, pinned=self.pins)
        position = self.plan.units.index(placement)
        return StreamedUnit(name=recipe.name, position=position, source=source, pinned=pinned)

    def _part_of_host_table(self, source: UnitSource) -> HostBuffer | None:
        """Return the part of a host-resident embedding that a tied head, or a slice of one, is."""
        tensor = source.unit.tensors[0]
        stored = tensor.pieces[0].source if tensor.pieces else None
        for table in self.spec.units.row_tables:
            whole, buffer = table.pieces[0].source, self.host_tables.get(table.name)
            if buffer is None or stored is None or len(source.unit.tensors) > 1:
                continue
            if stored.path != whole.path or not stored.dtype == table.dtype == whole.dtype:
                continue
            start = stored.offset - whole.offset
            if start >= 0 and stored.offset + stored.num_bytes <= whole.offset + whole.num_bytes:
                # Both lie congruent to the file, so the slice's page starts on one of the table's.
                page = start + whole.offset % PAGE - stored.offset % PAGE
                return HostBuffer.over(buffer.bytes[page : page + source.layout.host_bytes])
        return None
