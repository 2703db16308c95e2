"""Plans: where every unit lives, and the ledger in bytes that justifies it. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from .profiles import HostPinning
from .serialize import JsonValue
from .sizes import format_bytes, format_rate, format_seconds
from .speculation import DraftForecast


class Residency(Enum):
    """Where a unit's weights live between uses."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Granularity(Enum):
    """How large a streamed unit is."""

    BLOCK = "block"
    PART = "part"
    LAYER = "layer"


class MemoryTier(Enum):
    """A memory that the ledger accounts for."""

    DEVICE = "device"
    HOST = "host"


class LedgerKind(Enum):
    """The purpose of a ledger line; the values are stable."""

    EDGES = "edges"
    EMBEDDING = "embedding"
    HEAD = "head"
    ADAPTERS = "adapters"
    RESIDENT_BLOCKS = "resident_blocks"
    SLOTS = "slots"
    HOST_BLOCKS = "host_blocks"
    STAGING = "staging"
    DRAFT = "draft"
    PREFIX_CACHE = "prefix_cache"
    KV_CACHE = "kv_cache"
    KV_CACHE_GROWTH = "kv_cache_growth"
    ACTIVATIONS = "activations"
    READ_BUFFERS = "read_buffers"
    CONVERSION = "conversion"
    RUNTIME = "runtime"
    ADMITTED_TASKS = "admitted_tasks"
    RUNNING_TASK = "running_task"


_PURPOSES = {
    LedgerKind.EDGES: "edges (norms, buffers)",
    LedgerKind.EMBEDDING: "input embedding",
    LedgerKind.HEAD: "output head",
    LedgerKind.ADAPTERS: "adapters",
    LedgerKind.RESIDENT_BLOCKS: "resident blocks",
    LedgerKind.SLOTS: "slots",
    LedgerKind.HOST_BLOCKS: "blocks in host memory",
    LedgerKind.STAGING: "staging",
    LedgerKind.DRAFT: "draft model and its cache",
    LedgerKind.PREFIX_CACHE: "prefix cache",
    LedgerKind.KV_CACHE: "KV cache",
    LedgerKind.KV_CACHE_GROWTH: "KV cache growth",
    LedgerKind.ACTIVATIONS: "activations",
    LedgerKind.READ_BUFFERS: "read buffers",
    LedgerKind.CONVERSION: "conversion",
    LedgerKind.RUNTIME: "runtime and allocator",
    LedgerKind.ADMITTED_TASKS: "admitted tasks, between units",
    LedgerKind.RUNNING_TASK: "running task, inside a unit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlacement:
    """One unit and where it lives.

    Attributes:
        name: the unit's module path.
        block: its block's index; None for the head.
        residency: where it lives.
        weight_bytes: the size of its weights on the device.
        read_bytes: what a visit reads if the unit lives on disk.
    """

    name: str
    block: int | None
    residency: Residency
    weight_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """One line of the ledger.

    Attributes:
        kind: what the memory is for.
        where: which memory it is.
        num_bytes: how much of it.
    """

    DERIVED_KEYS: ClassVar = ("purpose",)

    kind: LedgerKind
    where: MemoryTier
    num_bytes: int

    @property
    def purpose(self) -> str:
        """The kind in English, for people."""
        return _PURPOSES[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLedger:
    """The uses of memory, and the budgets that bound them.

    Attributes:
        lines: every use, in bytes.
        device_budget_bytes: the bound on the device lines.
        host_budget_bytes: the bound on the host lines; 0 on a CPU device, which has no host lines.
    """

    DERIVED_KEYS: ClassVar = ("device_bytes", "host_bytes")

    lines: tuple[LedgerLine, ...]
    device_budget_bytes: int
    host_budget_bytes: int

    def total_bytes(self, where: MemoryTier) -> int:
        """Return the sum of the lines of one memory."""
        return sum(line.num_bytes for line in self.lines if line.where is where)

    def bytes_for(self, kind: LedgerKind) -> int:
        """Return what one purpose takes, in both memories."""
        return sum(line.num_bytes for line in self.lines if line.kind is kind)

    @property
    def device_bytes(self) -> int:
        """The predicted peak on the device."""
        return self.total_bytes(MemoryTier.DEVICE)

    @property
    def host_bytes(self) -> int:
        """The predicted peak in host memory (0 on a CPU device, where everything counts as device memory)."""
        return self.total_bytes(MemoryTier.HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCost:
    """The bytes that one sweep moves and the time that takes, computed from the machine's rates.

    Attributes:
        read_bytes: read from disk.
        copy_bytes: copied from host to device.
        read_s: duration of the reads alone.
        copy_s: duration of the copies alone.
        compute_s: duration of the decode forward alone.
        sweep_s: duration of the whole pipelined sweep for one new token.
        prefill_s: duration of the whole pipelined sweep for the prompt.
        limited_by: `"disk"`, `"copy"` or `"compute"`.
    """

    read_bytes: int
    copy_bytes: int
    read_s: float
    copy_s: float
    compute_s: float
    sweep_s: float
    prefill_s: float
    limited_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan(JsonValue):
    """Where everything lives.

    Attributes:
        model_name: path or Hub id.
        dtype: the run dtype.
        device: torch device string; the first of several.
        devices: all devices; they share every sweep's reads, and the ledger's device lines apply to each.
        granularity: the size of a streamed unit.
        units: every unit in visiting order, the head last if it is a unit.
        num_slots: device buffers for streamed units; 0 when nothing is streamed.
        slot_bytes: the size of one slot.
        num_staging: pinned host buffers on the way from disk to slot; 0 on a CPU device, where the slot is
            the staging buffer.
        embedding: where the input embedding's rows are looked up; None when it is not row-addressable (then
            it is on the device).
        head_slices: the number of vocabulary slices that the head is visited in; 1 is the whole head.
        prefill_chunk_tokens: longer prompts pass through the feed-forward parts in chunks; None is off.
        ledger: the memory it takes.
        cost: the predicted time.
        host_pinning: which host memory is pinned, where units live there or pass through it.
        pageable_bytes_per_s: how fast units that live in host memory without being pinned are copied into the
            staging buffers.
        draft: what proposes tokens for a sweep to verify; empty without a draft.
        draft_refusal: why the draft that was asked for is not used; empty if it is, or if there was none.
        draft_forecast: what is expected of the draft; None without one.
    """

    DERIVED_KEYS: ClassVar = ("is_resident", "is_bit_exact")

    model_name: str
    dtype: str
    device: str
    devices: tuple[str, ...]
    granularity: Granularity
    units: tuple[UnitPlacement, ...]
    num_slots: int
    slot_bytes: int
    num_staging: int
    embedding: Residency | None
    head_slices: int
    prefill_chunk_tokens: int | None = None
    ledger: MemoryLedger
    cost: SweepCost
    host_pinning: HostPinning = HostPinning.ALL
    pageable_bytes_per_s: float = 0.0
    draft: str = ""
    draft_refusal: str = ""
    draft_forecast: DraftForecast | None = None

    def count(self, residency: Residency) -> int:
        """Return how many units live at `residency`."""
        return sum(unit.residency is residency for unit in self.units)

    @property
    def is_resident(self) -> bool:
        """True when no weights move while the model runs."""
        return self.count(Residency.DEVICE) == len(self.units) and self.embedding in (None, Residency.DEVICE)

    @property
    def token_s(self) -> float:
        """Predicted seconds per token after the prompt's, with the draft if there is one."""
        return self.cost.sweep_s if self.draft_forecast is None else self.draft_forecast.token_s

    @property
    def device_is_host(self) -> bool:
        """Whether the device is the CPU."""
        return self.device.split(":")[0] == "cpu"

    @property
    def is_bit_exact(self) -> bool:
        """False where the user allowed kernels of other shapes, which may round the last bit differently.

        That is a head in slices on an accelerator (`allow_sliced_head`), and long prompts in chunks.
        """
        return not self._inexact_parts()

    def _inexact_parts(self) -> list[str]:
        sliced = [f"a head in {self.head_slices} vocabulary slices"] if self.head_slices > 1 else []
        chunk = self.prefill_chunk_tokens
        chunked = [] if chunk is None else [f"prompts in chunks of {chunk} tokens"]
        return ([] if self.device_is_host else sliced) + chunked

    def explain(self) -> str:
        """Return the plan as text for people: placement, ledger, predicted time, what limits it."""
        return "\n".join([*self._placement_lines(), *self._ledger_lines(), *self._cost_lines()])

    def _placement_lines(self) -> list[str]:
        noun = {
            Granularity.BLOCK: "blocks",
            Granularity.PART: "parts of blocks",
            Granularity.LAYER: "single layers",
        }
        counts = {residency: self.count(residency) for residency in Residency}
        lines = [
            f"{self.model_name} in {self.dtype} on {self._device_names()}",
            f"  units       {len(self.units)} ({noun[self.granularity]} and the head): "
            f"{counts[Residency.DEVICE]} on the device, {counts[Residency.HOST]} in host memory, "
            f"{counts[Residency.DISK]} on disk",
            f"  map         {self.placement_map()}",
        ]
        if self.num_slots:
            staging = f", {self.num_staging} staging buffers" if self.num_staging else ""
            lines.append(f"  slots       {self.num_slots} of {format_bytes(self.slot_bytes)}{staging}")
        if self.host_pinning is not HostPinning.ALL and counts[Residency.HOST]:
            lines.append(
                "  host        not pinned: units in host memory are first copied into the staging buffers, "
                f"at {format_rate(self.pageable_bytes_per_s)}"
            )
        if self.embedding is not None:
            lines.append(f"  embedding   {self.embedding.value}")
        if self.head_slices > 1:
            lines.append(f"  head        in {self.head_slices} vocabulary slices")
        if self.draft_refusal:
            lines.append(f"  draft       none: {self.draft_refusal}")
        if self.draft_forecast is not None:
            lines.append(f"  draft       {self.draft}: {self.draft_forecast.explain()}")
        if not self.is_bit_exact:
            lines.append(f"  exactness   not bit-exact, as allowed: {', '.join(self._inexact_parts())}")
        return lines

    def _device_names(self) -> str:
        shared = ", which share every sweep's reads" if len(self.devices) > 1 else ""
        return " and ".join(self.devices) + shared

    def _device_memory_title(self) -> str:
        different = list(dict.fromkeys(self.devices))
        return "device memory" + (f" (on each of {', '.join(different)})" if len(different) > 1 else "")

    def placement_map(self) -> str:
        """Return one letter per unit in visiting order (D device, H host, . disk); a long map is cut."""
        letters = {Residency.DEVICE: "D", Residency.HOST: "H", Residency.DISK: "."}
        text = "".join(letters[unit.residency] for unit in self.units)
        return text if len(text) <= 96 else f"{text[:60]}…{text[-30:]}"

    def _ledger_lines(self) -> list[str]:
        ledger, lines = self.ledger, []
        for where, title, budget_bytes in (
            (MemoryTier.DEVICE, self._device_memory_title(), ledger.device_budget_bytes),
            (MemoryTier.HOST, "host memory", ledger.host_budget_bytes),
        ):
            rows = [
                (line.purpose, line.num_bytes)
                for line in ledger.lines
                if line.where is where and line.num_bytes
            ]
            if not rows:
                continue
            rows += [("predicted peak", ledger.total_bytes(where)), ("budget", budget_bytes)]
            lines.append(f"  {title}")
            lines += [
                f"    {name:<34}{format_bytes(num_bytes):>10}{num_bytes:>18,} B" for name, num_bytes in rows
            ]
        return lines

    def _cost_lines(self) -> list[str]:
        cost = self.cost
        rate = cost.read_bytes / cost.read_s if cost.read_s else 0.0
        read = (
            f"{format_bytes(cost.read_bytes)} read at {format_rate(rate)}"
            if cost.read_bytes
            else "nothing read"
        )
        return [
            f"  one sweep   {format_seconds(cost.sweep_s)} per token (predicted): {read}; "
            f"limited by {cost.limited_by}",
            f"  prefill     {format_seconds(cost.prefill_s)} (predicted)",
        ]
