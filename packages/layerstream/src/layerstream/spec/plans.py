"""Decisions: where every unit lives, and the ledger in bytes that justifies it. Frozen data; no torch, no I/O.

Room: words. Made by the planning room, obeyed by `load`, explained to people by `PlacementPlan.explain()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .sizes import format_bytes, format_rate, format_seconds


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


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlacement:
    """One unit and where it lives.

    Attributes:
        name: the unit's module path.
        block: its block's index; None for the head.
        residency: where it lives.
        weight_bytes: what it weighs on the device.
        read_bytes: what a visit reads from the disk if it lives there.
    """

    name: str
    block: int | None
    residency: Residency
    weight_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """One line of the ledger: `num_bytes` of `where` ("device" or "host") for `purpose`."""

    purpose: str
    where: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLedger:
    """What takes memory, and what may.

    Attributes:
        lines: every use, in bytes.
        device_budget_bytes: the bound on the device lines.
        host_budget_bytes: the bound on the host lines; on a CPU device there are none.
    """

    lines: tuple[LedgerLine, ...]
    device_budget_bytes: int
    host_budget_bytes: int

    def total_bytes(self, where: str) -> int:
        """Return the sum of the lines of `where` ("device" or "host")."""
        return sum(line.num_bytes for line in self.lines if line.where == where)

    @property
    def device_bytes(self) -> int:
        """The predicted peak on the device."""
        return self.total_bytes("device")

    @property
    def host_bytes(self) -> int:
        """The predicted peak in host memory (0 on a CPU device, where all is counted as device)."""
        return self.total_bytes("host")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCost:
    """What one sweep moves and how long that takes, by arithmetic on the machine's figures.

    Attributes:
        read_bytes: from the disk.
        copy_bytes: from host to device.
        read_s: time of the reads alone.
        copy_s: time of the copies alone.
        compute_s: time of the decode forward alone.
        sweep_s: time of the pipelined whole for one new token.
        prefill_s: time of the pipelined whole for the prompt.
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
class PlacementPlan:
    """Where everything lives.

    Attributes:
        model_name: path or Hub id.
        dtype: the run dtype.
        device: torch device string; the first of several.
        devices: all of them; they share one reading of the weights, and each has what the ledger counts for a device.
        granularity: the size of a streamed unit.
        units: every unit in visiting order, the head last if it is a unit.
        num_slots: device buffers for streamed units; 0 when nothing is streamed.
        slot_bytes: the size of one slot.
        num_staging: pinned host buffers on the way from disk to slot; 0 on a CPU device, where the slot is the staging buffer.
        embedding: where the input embedding's rows are looked up; None when it is not row-addressable (then on the device).
        head_slices: in how many vocabulary slices the head is visited; 1 is whole.
        ledger: the bytes.
        cost: the predicted time.
    """

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
    ledger: MemoryLedger
    cost: SweepCost

    def count(self, residency: Residency) -> int:
        """Return how many units live at `residency`."""
        return sum(unit.residency is residency for unit in self.units)

    @property
    def is_resident(self) -> bool:
        """True when nothing is moved while the model runs."""
        return self.count(Residency.DEVICE) == len(self.units) and self.embedding in (None, Residency.DEVICE)

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
            f"  units       {len(self.units)} ({noun[self.granularity]} and the head): {counts[Residency.DEVICE]} on the device, "
            f"{counts[Residency.HOST]} in host memory, {counts[Residency.DISK]} on disk",
            f"  map         {self.placement_map()}",
        ]
        if self.num_slots:
            staging = f", {self.num_staging} staging buffers" if self.num_staging else ""
            lines.append(f"  slots       {self.num_slots} of {format_bytes(self.slot_bytes)}{staging}")
        if self.embedding is not None:
            lines.append(f"  embedding   {self.embedding.value}")
        if self.head_slices > 1:
            lines.append(f"  head        in {self.head_slices} vocabulary slices")
        return lines

    def _device_names(self) -> str:
        one_reading = ", fed by one reading" if len(self.devices) > 1 else ""
        return " and ".join(self.devices) + one_reading

    def _whose(self) -> str:
        different = list(dict.fromkeys(self.devices))
        return f" (of each: {', '.join(different)})" if len(different) > 1 else ""

    def placement_map(self) -> str:
        """Return one letter a unit in visiting order: D device, H host, . disk; runs are shortened when there are many."""
        letters = {Residency.DEVICE: "D", Residency.HOST: "H", Residency.DISK: "."}
        text = "".join(letters[unit.residency] for unit in self.units)
        return text if len(text) <= 96 else f"{text[:60]}…{text[-30:]}"

    def _ledger_lines(self) -> list[str]:
        lines = []
        budgets = {"device": self.ledger.device_budget_bytes, "host": self.ledger.host_budget_bytes}
        for where, budget in budgets.items():
            rows = [line for line in self.ledger.lines if line.where == where and line.num_bytes]
            if not rows:
                continue
            lines.append(f"  {where} memory{self._whose() if where == 'device' else ''}")
            lines += [
                f"    {row.purpose:<34}{format_bytes(row.num_bytes):>10}{row.num_bytes:>18,} B"
                for row in rows
            ]
            total = self.ledger.total_bytes(where)
            lines.append(f"    {'predicted peak':<34}{format_bytes(total):>10}{total:>18,} B")
            lines.append(f"    {'budget':<34}{format_bytes(budget):>10}{budget:>18,} B")
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
            f"  one sweep   {format_seconds(cost.sweep_s)} a token (predicted): {read}; limited by {cost.limited_by}",
            f"  prefill     {format_seconds(cost.prefill_s)} (predicted)",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Requests that share one micro-batch.

    Attributes:
        requests: their places among the requests given.
        rows: sequences in the tensor (beams included).
        prompt_tokens: the longest prompt; shorter ones are padded on the left.
        new_tokens: the longest answer at most.
        weight: what it takes of `BatchPlan.capacity` while it tasks.
    """

    requests: tuple[int, ...]
    rows: int
    prompt_tokens: int
    new_tokens: int
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How many requests go through the sweeps, and which together.

    Attributes:
        micro-batches: in boarding order.
        capacity: how much may task at once: bytes, or rows where the number of batches was given.
        lines: the ledger of what tasks; empty where the number of batches was given.
        room_bytes: what the budget leaves for it.
    """

    micro_batches: tuple[MicroBatch, ...]
    capacity: int
    lines: tuple[LedgerLine, ...]
    room_bytes: int

    def explain(self) -> str:
        """Return the plan of the batch as text for people."""
        rows = [micro_batch.rows for micro_batch in self.micro_batches]
        sizes = f"{min(rows)} to {max(rows)}" if rows else "0"
        lines = [f"  batch       {sum(rows)} rows in {len(self.micro_batches)} micro-batches of {sizes} rows"]
        lines += [f"    {line.purpose:<34}{format_bytes(line.num_bytes):>10}" for line in self.lines]
        return "\n".join([*lines, f"    {'room for them':<34}{format_bytes(self.room_bytes):>10}"])
