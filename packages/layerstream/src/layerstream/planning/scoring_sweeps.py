"""Plan scoring: which requests share a sweep, from their lengths and the memory that the budget leaves.

Every admitted task carries its hidden states from unit to unit while the others run. The keys and values of a
prefix live only until its last suffix has read them in the same unit. So they are held for one request at a
time, and only for the layers between two units that move. Only one task at a time is inside a unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..spec.options import Workload
from ..spec.plans import Granularity, LedgerKind, LedgerLine, MemoryTier, PlacementPlan, Residency
from ..spec.profiles import ModelProfile
from ..spec.request_plans import ScoringPlan
from ..spec.sizes import dtype_bytes
from .ledger import CARRIED_WIDTHS, activation_bytes, cache_bytes, room_bytes

TASK_BYTES = 640 * 1024
"""Memory of a suspended thread: stack, frames and OpenMP thread team. Measured with teams of two."""

_SOFTMAX_BYTES = 8
"""Bytes per logit for its copy in fp32 and its log-probability."""

SOFTMAX_ROWS = 64
"""Rows of logits that are turned into log-probabilities at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSize:
    """A request as lengths.

    Attributes:
        forwards: tokens of each of its forwards, in order of admission; a shared prefix comes first.
        context: tokens that each forward attends to, its own included.
        logit_rows: positions of each forward that reach the language-model head.
        is_shared: the later forwards read the keys and values of the first.
    """

    forwards: tuple[int, ...]
    context: tuple[int, ...]
    logit_rows: tuple[int, ...]
    is_shared: bool = True


def plan_scoring_sweeps(
    *,
    plan: PlacementPlan,
    profile: ModelProfile,
    requests: Sequence[ScoringSize],
    max_rows: int | None = None,
) -> ScoringPlan:
    """Return which requests share a sweep, in the order given.

    Args:
        plan: the plan of the loaded model; tasks may take what its budget leaves after the weights.
        profile: the profile of the same model.
        requests: in the order given by the user.
        max_rows: at most this many requests share a sweep, regardless of memory; None lets the budget decide.

    Returns:
        The sweeps. A request that exceeds the memory by itself gets a sweep of its own.

    Raises:
        PlanError: `max_rows` is less than 1.
    """
    if max_rows is not None and max_rows < 1:
        raise PlanError(f"max_rows must be at least 1, or None to let the budget decide; got {max_rows}")
    needs = [_Needs.of(request, plan, profile) for request in requests]
    available_bytes = room_bytes(plan)
    sweeps = _fill_sweeps(needs, available_bytes) if max_rows is None else _chunks(len(requests), max_rows)
    heaviest = max(
        (_combined(needs, sweep) for sweep in sweeps),
        key=lambda need: need.carried + need.inside,
        default=_Needs(),
    )
    lines = (
        LedgerLine(kind=LedgerKind.ADMITTED_TASKS, where=MemoryTier.DEVICE, num_bytes=heaviest.carried),
        LedgerLine(kind=LedgerKind.RUNNING_TASK, where=MemoryTier.DEVICE, num_bytes=heaviest.inside),
    )
    return ScoringPlan(sweeps=sweeps, lines=lines, room_bytes=available_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """The memory that a request holds while it waits, and its peak while a forward is inside a unit."""

    carried: int = 0
    inside: int = 0

    @staticmethod
    def of(request: ScoringSize, plan: PlacementPlan, profile: ModelProfile) -> _Needs:
        forwards = list(zip(request.forwards, request.context, request.logit_rows, strict=True))
        if plan.is_resident:
            # no task is ever suspended: each forward runs to its end
            carried = 0
        else:
            carried = sum(
                _carried_bytes(profile, plan.granularity, tokens, context) for tokens, context, _ in forwards
            )
            carried += TASK_BYTES * len(forwards)
        prefix = _prefix_cache_bytes(profile, plan, request.forwards[0]) if request.is_shared else 0
        inside = max(_inside_bytes(profile, *forward, own_cache=request.is_shared) for forward in forwards)
        return _Needs(carried=carried, inside=prefix + inside)


def _carried_bytes(profile: ModelProfile, granularity: Granularity, tokens: int, context: int) -> int:
    whole = activation_bytes(profile.activation, Workload(prompt_tokens=tokens))
    widths = CARRIED_WIDTHS.get(granularity)
    if widths is None:
        return whole
    # the mask: one element per pair of tokens where the forward on meta tensors showed such a mask; otherwise
    # one byte per pair, or no mask at all for a text without a prefix
    has_full_mask = profile.activation.bytes_per_token_squared or profile.activation.window_tokens
    pair_bytes = dtype_bytes(profile.dtype) if has_full_mask else int(tokens < context)
    stream = tokens * (widths * profile.hidden_size * dtype_bytes(profile.dtype) + pair_bytes * context)
    return min(whole, stream) if tokens == context else stream


def _prefix_cache_bytes(profile: ModelProfile, plan: PlacementPlan, prefix_tokens: int) -> int:
    """Return the bytes of a prefix's keys and values held at once: from one moved unit to the next."""
    cache = cache_bytes(profile.activation, Workload(prompt_tokens=max(1, prefix_tokens), new_tokens=0))
    blocks = len({unit.block for unit in plan.units if unit.block is not None})
    return math.ceil(cache * min(1.0, _longest_stretch(plan) / max(1, blocks)))


def _longest_stretch(plan: PlacementPlan) -> int:
    """Return the most blocks that a task runs through before the scheduler gives another task its turn."""
    moved = {unit.block for unit in plan.units if unit.residency is not Residency.DEVICE}
    blocks = sorted({unit.block for unit in plan.units if unit.block is not None})
    longest = here = 0
    for block in blocks:
        here = 1 if block in moved else here + 1
        longest = max(longest, here)
    return longest


def _inside_bytes(
    profile: ModelProfile, tokens: int, context: int, logit_rows: int, *, own_cache: bool
) -> int:
    activation, size = profile.activation, Workload(prompt_tokens=tokens, new_tokens=0)
    working = activation_bytes(activation, size)
    if own_cache:
        # prefix and suffix are concatenated for the duration of a call, and once more when heads are repeated
        # for each query
        whole = cache_bytes(activation, Workload(prompt_tokens=context, new_tokens=0))
        working += math.ceil(activation.cache_layer_share * whole)
        working += 2 * context * profile.hidden_size * dtype_bytes(profile.dtype) if tokens < context else 0
        working += math.ceil(activation.bytes_per_token_squared * tokens * (context - tokens))
    return working + scored_logits_bytes(profile, logit_rows)


def scored_logits_bytes(profile: ModelProfile, logit_rows: int) -> int:
    """Return the bytes of so many rows of logits, and of those that are turned into log-probabilities."""
    logits = logit_rows * profile.vocab_size * dtype_bytes(profile.dtype)
    return logits + min(logit_rows, SOFTMAX_ROWS) * profile.vocab_size * _SOFTMAX_BYTES


def _combined(needs: Sequence[_Needs], sweep: Sequence[int]) -> _Needs:
    return _Needs(
        carried=sum(needs[index].carried for index in sweep),
        inside=max(needs[index].inside for index in sweep),
    )


def _fill_sweeps(needs: Sequence[_Needs], available_bytes: int) -> tuple[tuple[int, ...], ...]:
    sweeps: list[list[int]] = []
    carried = inside = 0
    for index, need in enumerate(needs):
        carried, inside = carried + need.carried, max(inside, need.inside)
        if sweeps and carried + inside <= available_bytes:
            sweeps[-1].append(index)
        else:
            sweeps.append([index])
            carried, inside = need.carried, need.inside
    return tuple(tuple(sweep) for sweep in sweeps)


def _chunks(num_requests: int, most: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(range(start, min(start + most, num_requests))) for start in range(0, num_requests, most)
    )
