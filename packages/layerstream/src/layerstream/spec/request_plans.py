"""Plans of many requests: which share a tensor or a sweep. Frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plans import LedgerLine
from .sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Requests that share one tensor.

    Attributes:
        requests: their indices in the list of requests.
        rows: sequences in the tensor (beams included).
        prompt_tokens: the longest prompt; shorter ones are padded on the left.
        new_tokens: the length limit of the longest answer.
        weight: the share of `BatchPlan.capacity` that it takes while it is admitted.
    """

    requests: tuple[int, ...]
    rows: int
    prompt_tokens: int
    new_tokens: int
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which requests share a micro-batch, and how much may be admitted at once.

    Attributes:
        micro_batches: in order of admission.
        capacity: how much may be admitted at once: bytes, or rows when `max_rows` was given.
        lines: the ledger of the admitted tasks; empty when `max_rows` was given.
        room_bytes: the memory that the budget leaves for them.
    """

    micro_batches: tuple[MicroBatch, ...]
    capacity: int
    lines: tuple[LedgerLine, ...]
    room_bytes: int

    def explain(self) -> str:
        """Return the plan of the batch as text for people."""
        rows = [micro_batch.rows for micro_batch in self.micro_batches]
        smallest, largest = min(rows, default=0), max(rows, default=0)
        sizes = str(largest) if smallest == largest else f"{smallest} to {largest}"
        noun = "micro-batch" if len(rows) == 1 else "micro-batches"
        title = f"  batch       {sum(rows)} rows in {len(rows)} {noun} of {sizes} rows"
        return "\n".join([title, *_task_rows(self.lines, self.room_bytes)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """Which requests share a sweep.

    Attributes:
        sweeps: for each sweep the indices of its requests, in the order given.
        lines: the ledger of the sweep that takes the most memory.
        room_bytes: the memory that the budget leaves for it.
    """

    sweeps: tuple[tuple[int, ...], ...]
    lines: tuple[LedgerLine, ...]
    room_bytes: int

    @property
    def sweep_bytes(self) -> int:
        """The memory of the sweep that takes the most."""
        return sum(line.num_bytes for line in self.lines)

    def explain(self) -> str:
        """Return the plan as text for people."""
        num_requests, num_sweeps = sum(len(sweep) for sweep in self.sweeps), len(self.sweeps)
        noun = "sweep" if num_sweeps == 1 else "sweeps"
        title = f"  scoring     {num_requests} requests in {num_sweeps} {noun}"
        return "\n".join([title, *_task_rows(self.lines, self.room_bytes)])


def _task_rows(lines: Sequence[LedgerLine], room_bytes: int) -> list[str]:
    rows = [*((line.purpose, line.num_bytes) for line in lines), ("left by the budget", room_bytes)]
    return [f"    {name:<34}{format_bytes(num_bytes):>10}" for name, num_bytes in rows]
