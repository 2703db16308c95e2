"""Carry out a plan: read the weights that stay, once for all devices, and prefetch those that move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from ..checkpoint.reader import READER_THREADS, DiskReader
from ..spec.load_progress import LoadProgress
from ..spec.options import LoadOptions
from ..spec.plans import PlacementPlan, Residency, UnitPlacement
from ..spec.profiles import HostPinning, ModelProfile, UnitRecipe
from ..spec.timeline import Timeline
from ..streaming.buffers import HostBuffer, allocate_many
from ..streaming.fetches import StreamedUnit
from ..streaming.host_arena import HostArena
from ..streaming.layout import PAGE, lay_out_in_host
from ..streaming.prefetcher import Prefetcher
from ..streaming.runtime import DeviceRuntime
from ..streaming.sources import Fill, UnitSource, read_all
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
        arenas: the host memory of what moves; close them after the reader.
        replicas: the parts of each device's replica.
        adapters: what must still be put on each replica's model.
    """

    options: LoadOptions
    plan: PlacementPlan
    profile: ModelProfile
    timeline: Timeline
    reader: DiskReader
    prefetcher: Prefetcher | None
    arenas: tuple[HostArena, ...]
    replicas: tuple[ReplicaParts, ...]
    adapters: tuple[Adapter, ...]


OnProgress = Callable[[LoadProgress], object]


def build(
    spec: ModelSpec,
    plan: PlacementPlan,
    runtimes: Sequence[DeviceRuntime],
    on_progress: OnProgress | None = None,
) -> BuiltModel:
    """Return the model of `spec`, placed as `plan` says, on every device of `runtimes`.

    Args:
        spec: the model, inspected.
        plan: where everything goes.
        runtimes: the devices' operations.
        on_progress: called after each unit that stays in memory.

    Raises:
        ReadFailedError: the disk did not return the bytes it holds; nothing is left behind.
    """
    with ExitStack() as on_failure:
        built = _Builder(spec, plan, runtimes, on_failure).build(on_progress)
        on_failure.pop_all()
    return built


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostTier:
    """What lives in host memory.

    Attributes:
        tables: the embeddings.
        units: the units.
        own: those of the units that are no part of an embedding.
    """

    tables: Sequence[UnitSource]
    units: Sequence[StreamedUnit]
    own: Sequence[StreamedUnit]

    @property
    def sources(self) -> list[UnitSource]:
        """What is read."""
        return [*self.tables, *(unit.source for unit in self.own)]


class _Builder:
    """Carries out one plan, step by step. When a step fails, everything opened so far is closed."""

    def __init__(
        self, spec: ModelSpec, plan: PlacementPlan, runtimes: Sequence[DeviceRuntime], on_failure: ExitStack
    ) -> None:
        self.spec, self.plan, self.on_failure = spec, plan, on_failure
        self.runtimes, self.runtime, self.is_host = runtimes, runtimes[0], runtimes[0].is_host
        self.timeline = Timeline()
        self.pins_units = plan.host_pinning is HostPinning.ALL
        self.arenas: list[HostArena] = []
        # After the reader, whose threads may still write to it.
        on_failure.callback(self._close_arenas)
        self.reader = DiskReader()
        on_failure.callback(self.reader.close)
        self.recipes = {unit.name: unit for unit in spec.units.streamed[plan.granularity]}
        self.replicas = [ReplicaBuilder(spec, plan, runtime, index) for index, runtime in enumerate(runtimes)]
        self.host_tables: dict[str, HostBuffer] = {}

    def build(self, on_progress: OnProgress | None) -> BuiltModel:
        """Build everything, and start the prefetcher last, when all that it feeds is in place."""
        staying, moving_units = self._staying_sources(), self._moving_units()
        host_tier = self._host_tier(moving_units)
        on_filled = _counting([*staying, *host_tier.sources], on_progress)
        self._install_residents(staying, on_filled)
        moving = self._moving_names()
        for replica in self.replicas:
            replica.share_ties(moving)
            replica.place_absent_weights(moving, self.reader)
        self._fill_host_memory(host_tier, on_filled)
        self._attach_rows()
        prefetcher = self._start_prefetcher(moving_units)
        return BuiltModel(
            options=self.spec.options,
            plan=self.plan,
            profile=self.spec.profile,
            timeline=self.timeline,
            reader=self.reader,
            prefetcher=prefetcher,
            arenas=tuple(self.arenas),
            replicas=tuple(replica.finish() for replica in self.replicas),
            adapters=self.spec.adapters,
        )

    def _close_arenas(self) -> None:
        for arena in self.arenas:
            arena.close()

    # -- weights that stay ---------------------------------------------------------------------------------

    def _staying_sources(self) -> list[UnitSource]:
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
        return [UnitSource(unit) for unit in staying if unit.tensors]

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

    def _install_residents(self, sources: list[UnitSource], on_filled: Callable[[Fill], None]) -> None:
        """Read each unit once and install it in every replica. Replicas on the CPU share the memory."""
        if self.is_host:
            buffers = allocate_many([source.layout.host_bytes for source in sources])
            fills = [Fill.host(source, buffer) for source, buffer in zip(sources, buffers, strict=True)]
            read_all(fills, self.reader, on_filled)
        else:
            fills = [Fill.devices(source, self._device_memory(source)) for source in sources]
            chunk_bytes = self.spec.profile.loading_buffer_bytes // READER_THREADS
            for replica in self.replicas:
                # What used that memory before may still be computing, and reader threads do not wait.
                replica.parts.buffers.finish_computation()
            with DiskReader(chunk_bytes=chunk_bytes) as reader:
                read_all(fills, reader, on_filled)
        for fill in fills:
            for number, replica in enumerate(self.replicas):
                replica.install(fill.source, fill.targets[0 if self.is_host else number])

    def _device_memory(self, source: UnitSource) -> list[torch.Tensor]:
        return [runtime.allocate(source.layout.device_bytes) for runtime in self.runtimes]

    def _moving_names(self) -> set[str]:
        """Return the tensors that move: those of the stream, and embeddings looked up by row."""
        rows = () if self.plan.embedding in (None, Residency.DEVICE) else self.spec.units.row_tables
        streamed = {tensor.name for unit in self._moving_recipes() for tensor in unit.tensors}
        return streamed | {tensor.name for tensor in rows}

    # -- units that move -----------------------------------------------------------------------------------

    def _moving_recipes(self) -> list[UnitRecipe]:
        recipes = [self.recipes[p.name] for p in self._blocks() if p.residency is not Residency.DEVICE]
        head = self._head()
        if head is not None and head.residency is not Residency.DEVICE:
            recipes += self.spec.units.head_slices(self.plan.head_slices)
        return recipes

    def _moving_units(self) -> list[StreamedUnit]:
        units = []
        for recipe in self._moving_recipes():
            placement = self._placement_of(recipe)
            position = self.plan.units.index(placement)
            units.append(StreamedUnit(name=recipe.name, position=position, source=UnitSource(recipe)))
        return units

    def _placement_of(self, recipe: UnitRecipe) -> UnitPlacement:
        return next(p for p in self.plan.units if p.name == (recipe.slice_of or recipe.name))

    def _host_tier(self, units: Sequence[StreamedUnit]) -> _HostTier:
        """Return what lives in host memory, laid out for it."""
        tables = self._host_tables()
        living = [u for u in units if self._placement_of(u.source.unit).residency is Residency.HOST]
        own = [unit for unit in living if self._table_of(unit.source, tables) is None]
        for unit in own:
            unit.source = UnitSource(unit.source.unit, lay_out_in_host)
        return _HostTier(tables=tables, units=living, own=own)

    def _fill_host_memory(self, tier: _HostTier, on_filled: Callable[[Fill], None]) -> None:
        """Take the plan's memory for what lives in host memory, and read it."""
        sources = tier.sources
        arena = HostArena([s.layout.host_bytes for s in sources], self.runtime, pins=self.pins_units)
        self.arenas.append(arena)
        fills = (Fill.host(source, arena.ready(index)) for index, source in enumerate(sources))
        read_all(fills, self.reader, on_filled)
        buffers = [arena.ready(index) for index in range(len(sources))]
        self.host_tables = {t.unit.name: b for t, b in zip(tier.tables, buffers, strict=False)}
        for unit, buffer in zip(tier.own, buffers[len(tier.tables) :], strict=True):
            unit.host = buffer
        for unit in tier.units:
            unit.host = unit.host or self._part_of_table(unit.source, tier.tables)
            unit.passes_staging = not self.pins_units

    def _start_prefetcher(self, units: Sequence[StreamedUnit]) -> Prefetcher | None:
        if not units:
            return None
        largest_bytes = max((u.source.layout.host_bytes for u in units if u.needs_buffer), default=0)
        allocate = partial(_allocate_buffers, largest_bytes, self.plan, self.runtime, self.arenas)
        prefetcher = Prefetcher(units, self.reader, allocate, timeline=self.timeline)
        self.on_failure.callback(prefetcher.close)
        streams = []
        for replica in self.replicas:
            streams.append(replica.attach_stream(prefetcher, [unit.source.unit for unit in units]))
            self.on_failure.callback(streams[-1].close)
        prefetcher.start(streams)
        return prefetcher

    # -- embeddings that are looked up by row --------------------------------------------------------------

    def _host_tables(self) -> list[UnitSource]:
        """Return the embeddings that live in host memory."""
        if self.plan.embedding is not Residency.HOST:
            return []
        return [UnitSource(UnitRecipe(name=t.name, tensors=(t,))) for t in self.spec.units.row_tables]

    def _attach_rows(self) -> None:
        if self.plan.embedding in (None, Residency.DEVICE):
            return
        tables = {
            source.unit.name: source.host_views(self.host_tables[source.unit.name].bytes)[source.unit.name]
            for source in self._host_tables()
        }
        for replica in self.replicas:
            replica.attach_rows(self.reader, tables)

    def _table_of(self, source: UnitSource, tables: Sequence[UnitSource]) -> UnitSource | None:
        """Return the embedding in host memory that a tied head, or a slice of one, is a part of."""
        tensor = source.unit.tensors[0]
        if len(source.unit.tensors) > 1 or not tensor.pieces:
            return None
        part = tensor.pieces[0].source
        for table in tables:
            whole = table.unit.tensors[0].pieces[0].source
            if part.path != whole.path or not part.dtype == table.unit.tensors[0].dtype == whole.dtype:
                continue
            start = part.offset - whole.offset
            if start >= 0 and part.offset + part.num_bytes <= whole.offset + whole.num_bytes:
                return table
        return None

    def _part_of_table(self, source: UnitSource, tables: Sequence[UnitSource]) -> HostBuffer:
        table = self._table_of(source, tables)
        assert table is not None
        part = source.unit.tensors[0].pieces[0].source
        whole = table.unit.tensors[0].pieces[0].source
        # Both lie congruent to the file, so the part's page starts on one of the table's.
        page = part.offset - whole.offset + whole.offset % PAGE - part.offset % PAGE
        buffer = self.host_tables[table.unit.name]
        return HostBuffer.over(buffer.bytes[page : page + source.layout.host_bytes])


def _allocate_buffers(
    num_bytes: int, plan: PlacementPlan, runtime: DeviceRuntime, arenas: list[HostArena]
) -> list[HostBuffer]:
    """Return the buffers of `num_bytes` that reads go to: staging buffers, or a CPU device's slots.

    It knows nothing of the model, which could otherwise not be collected while its prefetcher is there.
    """
    if not num_bytes:
        return []
    if runtime.is_host:
        return allocate_many([num_bytes] * plan.num_slots)
    if plan.host_pinning is HostPinning.ROUNDED:
        return [HostBuffer.allocate_pinned(num_bytes) for _ in range(plan.num_staging)]
    arenas.append(HostArena([num_bytes] * plan.num_staging, runtime))
    return [arenas[-1].ready(index) for index in range(plan.num_staging)]


def _counting(sources: Iterable[UnitSource], on_progress: OnProgress | None) -> Callable[[Fill], None]:
    """Return a function that counts what is filled, and reports it."""
    total_bytes, done_bytes = sum(source.read_bytes for source in sources), 0

    def on_filled(fill: Fill) -> None:
        nonlocal done_bytes
        done_bytes += fill.source.read_bytes
        if on_progress is not None:
            on_progress(LoadProgress(done_bytes=done_bytes, total_bytes=total_bytes))

    return on_filled
