"""Which requests share a tensor, and how many may task at once within the memory that is left.

Room: planning (pure: no torch, no I/O). Knows lengths and bytes; does not know what a request asks or how tasks take turns.

Every micro-batch on board keeps its KV cache, and what it carries from unit to unit while others run; one at a time is inside a
unit and needs room for its activations there. The ledger of a batch counts all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..spec.options import Workload
from ..spec.plans import BatchPlan, Granularity, LedgerLine, MicroBatch, PlacementPlan
from ..spec.profiles import ModelProfile
from ..spec.sizes import dtype_bytes
from .ledger import CARRIED_WIDTHS, activation_bytes, cache_bytes, cache_growth_bytes, room_bytes

MOST_PADDING = 0.5
"""Padding's share of a micro-batch's tokens, answers included: beyond it, what is computed for nothing outweighs the larger product."""

MOST_ROWS = 256
"""Rows of one micro-batch: products gain nothing from more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRequest:
    """A request as lengths.

    Attributes:
        kind: requests of another kind never share a tensor.
        rows: sequences it takes (its beams).
        prompt_tokens: of its prompt.
        new_tokens: at most.
        is_alone: it shares a tensor with nobody.
    """

    kind: int
    rows: int
    prompt_tokens: int
    new_tokens: int
    is_alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """What micro-batches of this model take."""

    profile: ModelProfile
    granularity: Granularity

    def kept_bytes(self, size: Workload) -> int:
        """Return what a micro-batch holds as long as it tasks."""
        return cache_bytes(self.profile.activation, size) + self._carried_bytes(size)

    def inside_bytes(self, size: Workload) -> int:
        """Return what it takes beside that while it is inside a unit."""
        activations = activation_bytes(self.profile.activation, size) - self._carried_bytes(size)
        return activations + cache_growth_bytes(self.profile.activation, size)

    def _carried_bytes(self, size: Workload) -> int:
        activations = activation_bytes(self.profile.activation, size)
        widths = CARRIED_WIDTHS.get(self.granularity)
        if widths is None:
            return activations
        # the mask has a byte for each pair of tokens
        token_bytes = widths * self.profile.hidden_size * dtype_bytes(self.profile.dtype) + size.prompt_tokens
        return min(activations, size.batch_size * size.prompt_tokens * token_bytes)


def plan_batch(
    *,
    plan: PlacementPlan,
    profile: ModelProfile,
    requests: Sequence[RowRequest],
    packed: bool = True,
    batches: int | None = None,
) -> BatchPlan:
    """Return which requests share a micro-batch and how much may task at once.

    Args:
        plan: of the loaded model; what its budget leaves beside the weights is what micro-batches may take.
        profile: of the same model.
        requests: in the order given by the user.
        packed: put requests of a kind and of similar lengths into one tensor; False gives each a micro-batch of its own.
        batches: task in that many batches, whatever memory says; None lets the budget decide.

    Returns:
        The micro-batches in boarding order. One that alone takes more than there is tasks alone.

    Raises:
        PlanError: `batches` is less than 1.
    """
    if batches is not None and batches < 1:
        raise PlanError(f"batches must be at least 1, or None for as many as memory wants; got {batches}")
    memory = _Memory(profile=profile, granularity=plan.granularity)
    room = room_bytes(plan)
    if batches is None:
        groups = _grouped(requests, memory, packed, most_bytes=room)
        if sum(_kept(memory, requests, group) for group in groups) > room:
            # half of the room each: while one micro-batch ends, another is on its way
            groups = _grouped(requests, memory, packed, most_bytes=room // 2)
        micro_batches = tuple(
            _as_micro_batch(requests, group, _kept(memory, requests, group)) for group in groups
        )
        inside = max((memory.inside_bytes(_size(requests, group)) for group in groups), default=0)
        capacity = max(0, room - inside)
        return BatchPlan(
            micro_batches=micro_batches,
            capacity=capacity,
            lines=_lines(micro_batches, capacity, inside),
            room_bytes=room,
        )
    most_rows = -(-sum(request.rows for request in requests) // batches)
    groups = _grouped(requests, memory, packed, most_rows=most_rows)
    micro_batches = tuple(
        _as_micro_batch(requests, group, sum(requests[index].rows for index in group)) for group in groups
    )
    return BatchPlan(micro_batches=micro_batches, capacity=most_rows, lines=(), room_bytes=room)


def _grouped(
    requests: Sequence[RowRequest],
    memory: _Memory,
    packed: bool,
    *,
    most_bytes: int | None = None,
    most_rows: int = MOST_ROWS,
) -> list[list[int]]:
    """Return the requests in groups by index, groups in the order of their first request."""
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
    requests: Sequence[RowRequest], group: list[int], memory: _Memory, most_bytes: int | None, most_rows: int
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


def _kept(memory: _Memory, requests: Sequence[RowRequest], group: list[int]) -> int:
    return memory.kept_bytes(_size(requests, group))


def _as_micro_batch(requests: Sequence[RowRequest], group: list[int], weight: int) -> MicroBatch:
    size = _size(requests, group)
    return MicroBatch(
        requests=tuple(group),
        rows=size.batch_size,
        prompt_tokens=size.prompt_tokens,
        new_tokens=size.new_tokens,
        weight=weight,
    )


def _lines(micro_batches: Sequence[MicroBatch], capacity: int, inside: int) -> tuple[LedgerLine, ...]:
    """Return what is taken when as much tasks as may: the heaviest run of micro-batches that board together."""
    riding = max(
        _admitted_bytes(micro_batches, capacity),
        max((micro_batch.weight for micro_batch in micro_batches), default=0),
    )
    return (
        LedgerLine(purpose="tasks: KV cache and carried", where="device", num_bytes=riding),
        LedgerLine(purpose="inside a unit", where="device", num_bytes=inside),
    )


def _admitted_bytes(micro_batches: Sequence[MicroBatch], capacity: int) -> int:
    return min(capacity, sum(micro_batch.weight for micro_batch in micro_batches))
