"""Plan a batch: which requests share a micro-batch, and how many micro-batches may be admitted at once.

Every admitted micro-batch holds its KV cache, and what its forward carries from unit to unit while others
run. Only one at a time is inside a unit, where it also needs memory for its activations. The ledger of a
batch counts all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..spec.options import Workload
from ..spec.plans import LedgerKind, LedgerLine, MemoryTier, PlacementPlan
from ..spec.profiles import ModelProfile
from ..spec.request_plans import BatchPlan, MicroBatch
from .ledger import room_bytes
from .request_memory import RequestMemory

MOST_PADDING = 0.5
"""The maximum padding in a micro-batch, as a share of its tokens, answers included.

Beyond it, the wasted computation outweighs the gain of a larger matrix product.
"""

MOST_ROWS = 256
"""The maximum number of rows in a micro-batch; matrix products gain nothing from more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRequest:
    """A request as lengths.

    Attributes:
        kind: requests of different kinds never share a tensor.
        rows: sequences that it takes (its beams).
        prompt_tokens: length of its prompt.
        new_tokens: length limit of its answer.
        is_alone: it never shares a tensor.
    """

    kind: int
    rows: int
    prompt_tokens: int
    new_tokens: int
    is_alone: bool = False


def plan_batch(
    *,
    plan: PlacementPlan,
    profile: ModelProfile,
    requests: Sequence[RowRequest],
    packed: bool = True,
    max_rows: int | None = None,
) -> BatchPlan:
    """Return which requests share a micro-batch and how much may be admitted at once.

    Args:
        plan: the plan of the loaded model; micro-batches may take what its budget leaves after the weights.
        profile: the profile of the same model.
        requests: in the order given by the user.
        packed: put requests of one kind and of similar lengths into one tensor; False gives each its own
            micro-batch.
        max_rows: at most this many rows share a sweep, regardless of memory; None lets the budget
            decide.

    Returns:
        The micro-batches in order of admission. One that exceeds the capacity by itself runs alone.

    Raises:
        PlanError: `max_rows` is less than 1.
    """
    if max_rows is not None and max_rows < 1:
        raise PlanError(f"max_rows must be at least 1, or None to let the budget decide; got {max_rows}")
    memory = RequestMemory(profile=profile, granularity=plan.granularity)
    available_bytes = room_bytes(plan)
    if max_rows is not None:
        groups = _grouped(requests, memory, packed, most_rows=max_rows)
        micro_batches = tuple(_as_micro_batch(requests, group) for group in groups)
        return BatchPlan(micro_batches=micro_batches, capacity=max_rows, lines=(), room_bytes=available_bytes)
    groups = _grouped(requests, memory, packed, most_bytes=available_bytes)
    if sum(memory.kept_bytes(_size(requests, group)) for group in groups) > available_bytes:
        # half of the memory each, so that one micro-batch can start while another finishes
        groups = _grouped(requests, memory, packed, most_bytes=available_bytes // 2)
    micro_batches = tuple(
        _as_micro_batch(requests, group, memory.kept_bytes(_size(requests, group))) for group in groups
    )
    inside = max((memory.inside_bytes(_size(requests, group)) for group in groups), default=0)
    capacity = max(0, available_bytes - inside)
    return BatchPlan(
        micro_batches=micro_batches,
        capacity=capacity,
        lines=_lines(micro_batches, capacity, inside),
        room_bytes=available_bytes,
    )


def _grouped(
    requests: Sequence[RowRequest],
    memory: RequestMemory,
    packed: bool,
    *,
    most_bytes: int | None = None,
    most_rows: int = MOST_ROWS,
) -> list[list[int]]:
    """Return the requests in groups of indices; groups are in the order of their first request."""
    if not packed:
        return [[index] for index in range(len(requests))]
    groups: list[list[int]] = []
    order = sorted(
        range(len(requests)),
        key=lambda i: (requests[i].kind, -requests[i].prompt_tokens, -requests[i].new_tokens, i),
    )
    for index in order:
        grown = [*groups[-1], index] if groups else []
        if grown and _may_share(requests, grown, memory, most_bytes, min(most_rows, MOST_ROWS)):
            groups[-1] = grown
        else:
            groups.append([index])
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])


def _may_share(
    requests: Sequence[RowRequest],
    group: list[int],
    memory: RequestMemory,
    most_bytes: int | None,
    most_rows: int,
) -> bool:
    members = [requests[index] for index in group]
    if any(member.is_alone for member in members) or len({member.kind for member in members}) > 1:
        return False
    size = _size(requests, group)
    whole = size.batch_size * size.context_tokens
    needed = sum(member.rows * (member.prompt_tokens + member.new_tokens) for member in members)
    fits = most_bytes is None or memory.kept_bytes(size) + memory.inside_bytes(size) <= most_bytes
    return fits and size.batch_size <= most_rows and whole - needed <= MOST_PADDING * whole


def _size(requests: Sequence[RowRequest], group: Iterable[int]) -> Workload:
    members = [requests[index] for index in group]
    return Workload(
        batch_size=sum(member.rows for member in members),
        prompt_tokens=max(member.prompt_tokens for member in members),
        new_tokens=max(member.new_tokens for member in members),
    )


def _as_micro_batch(
    requests: Sequence[RowRequest], group: list[int], weight: int | None = None
) -> MicroBatch:
    """Return a group as a micro-batch; without a weight, it weighs its rows."""
    size = _size(requests, group)
    return MicroBatch(
        requests=tuple(group),
        rows=size.batch_size,
        prompt_tokens=size.prompt_tokens,
        new_tokens=size.new_tokens,
        weight=size.batch_size if weight is None else weight,
    )


def _lines(micro_batches: Sequence[MicroBatch], capacity: int, inside: int) -> tuple[LedgerLine, ...]:
    """Return the ledger at full capacity."""
    weights = [micro_batch.weight for micro_batch in micro_batches]
    admitted = max(min(capacity, sum(weights)), max(weights, default=0))
    return (
        LedgerLine(kind=LedgerKind.ADMITTED_TASKS, where=MemoryTier.DEVICE, num_bytes=admitted),
        LedgerLine(kind=LedgerKind.RUNNING_TASK, where=MemoryTier.DEVICE, num_bytes=inside),
    )
