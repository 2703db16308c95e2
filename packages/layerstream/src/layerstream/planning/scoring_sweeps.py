"""How many requests may share a sweep: sweeps, formed from lengths and the memory that is left.

Room: planning (pure: no torch, no I/O). Knows lengths and bytes; does not know what is asked nor how tasks take turns.

Every task on board carries its hidden states from unit to unit while the others run. The keys and values of a prefix live only
until its last suffix has read them in the same unit, so what is held of them is one request's, over the layers between two units
that are moved; and one task at a time is inside a unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..spec.options import Workload
from ..spec.plans import Granularity, LedgerLine, PlacementPlan, Residency
from ..spec.profiles import ModelProfile
from ..spec.sizes import dtype_bytes, format_bytes
from .ledger import CARRIED_WIDTHS, activation_bytes, cache_bytes, room_bytes

TASK_BYTES = 640 * 1024
"""A suspended thread: its stack, its frames, and the team of threads that OpenMP keeps for it. Measured with teams of two."""

_SOFTMAX_BYTES = 8
"""Each logit once more in fp32, and its log-probability."""

SOFTMAX_ROWS = 64
"""Rows of logits that become log-probabilities at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSize:
    """A request as lengths.

    Attributes:
        forwards: tokens of each forward that it takes, in boarding order: the prefix first where it is shared.
        context: tokens that each of them attends to, its own included.
        logit_rows: positions of each that reach the language-model head.
        is_shared: the later forwards read the keys and values of the first.
    """

    forwards: tuple[int, ...]
    context: tuple[int, ...]
    logit_rows: tuple[int, ...]
    is_shared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """Which requests share a sweep.

    Attributes:
        sweeps: places of the requests, in the order given; each sweep is one sweep.
        lines: the ledger of the heaviest sweep.
        room_bytes: what the budget leaves for it.
    """

    sweeps: tuple[tuple[int, ...], ...]
    lines: tuple[LedgerLine, ...]
    room_bytes: int

    @property
    def sweep_bytes(self) -> int:
        """What the heaviest sweep takes."""
        return sum(line.num_bytes for line in self.lines)

    def explain(self) -> str:
        """Return the plan as text for people."""
        num_questions = sum(len(sweep) for sweep in self.sweeps)
        lines = [f"  scoring     {num_questions} requests in {len(self.sweeps)} sweeps"]
        lines += [f"    {line.purpose:<34}{format_bytes(line.num_bytes):>10}" for line in self.lines]
        return "\n".join([*lines, f"    {'room for them':<34}{format_bytes(self.room_bytes):>10}"])


def plan_scoring_sweeps(
    *, plan: PlacementPlan, profile: ModelProfile, requests: Sequence[ScoringSize], batches: int | None = None
) -> ScoringPlan:
    """Return which requests task together, in their order.

    Args:
        plan: of the loaded model; what its budget leaves beside the weights is what tasks may take.
        profile: of the same model.
        requests: in the order given by the user.
        batches: form that many sweeps of about the same number of tokens, whatever memory says; None lets the budget decide.

    Returns:
        The sweeps. A request that alone takes more than there is tasks alone.

    Raises:
        PlanError: `batches` is less than 1.
    """
    if batches is not None and batches < 1:
        raise PlanError(f"batches must be at least 1, or None for as few as memory allows; got {batches}")
    needs = [_Needs.of(request, plan, profile) for request in requests]
    room = room_bytes(plan)
    sweeps = _filled(needs, room) if batches is None else _divided(requests, batches)
    heaviest = max(
        (_together(needs, sweep) for sweep in sweeps),
        key=lambda need: need.carried + need.inside,
        default=_Needs(),
    )
    lines = (
        LedgerLine(purpose="tasks: what they carry", where="device", num_bytes=heaviest.carried),
        LedgerLine(purpose="inside a unit, with its prefix", where="device", num_bytes=heaviest.inside),
    )
    return ScoringPlan(sweeps=sweeps, lines=lines, room_bytes=room)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """What one request takes while it waits, and the most that it takes while one of its forwards is inside a unit."""

    carried: int = 0
    inside: int = 0

    @staticmethod
    def of(request: ScoringSize, plan: PlacementPlan, profile: ModelProfile) -> _Needs:
        forwards = list(zip(request.forwards, request.context, request.logit_rows, strict=True))
        if plan.is_resident:
            # nobody waits anywhere: each forward runs to its end
            carried = 0
        else:
            carried = sum(
                _carried_bytes(profile, plan.granularity, tokens, context) for tokens, context, _ in forwards
            )
            carried += TASK_BYTES * len(forwards)
        lent = _lent_bytes(profile, plan, request.forwards[0]) if request.is_shared else 0
        inside = max(_inside_bytes(profile, *forward, own_cache=request.is_shared) for forward in forwards)
        return _Needs(carried=carried, inside=lent + inside)


def _carried_bytes(profile: ModelProfile, granularity: Granularity, tokens: int, context: int) -> int:
    whole = activation_bytes(profile.activation, Workload(prompt_tokens=tokens))
    widths = CARRIED_WIDTHS.get(granularity)
    if widths is None:
        return whole
    # a mask: an element a pair where the forward on shapes has shown one, else a byte, and none for a text from its beginning
    squared = profile.activation.bytes_per_token_squared or profile.activation.window_tokens
    pair = dtype_bytes(profile.dtype) if squared else int(tokens < context)
    stream = tokens * (widths * profile.hidden_size * dtype_bytes(profile.dtype) + pair * context)
    return min(whole, stream) if tokens == context else stream


def _lent_bytes(profile: ModelProfile, plan: PlacementPlan, prefix_tokens: int) -> int:
    """Return the bytes of a prefix' keys and values while they are read: of the blocks from one moved unit to the next."""
    cache = cache_bytes(profile.activation, Workload(prompt_tokens=max(1, prefix_tokens), new_tokens=0))
    blocks = len({unit.block for unit in plan.units if unit.block is not None})
    return math.ceil(cache * min(1.0, _longest_stretch(plan) / max(1, blocks)))


def _longest_stretch(plan: PlacementPlan) -> int:
    """Return how many blocks a task goes through at most before it hands the baton on."""
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
        # prefix and suffix side by side for the length of a call, and once more with a head for each query
        whole = cache_bytes(activation, Workload(prompt_tokens=context, new_tokens=0))
        working += math.ceil(activation.cache_layer_share * whole)
        working += 2 * context * profile.hidden_size * dtype_bytes(profile.dtype) if tokens < context else 0
        working += math.ceil(activation.bytes_per_token_squared * tokens * (context - tokens))
    logits = logit_rows * profile.vocab_size * dtype_bytes(profile.dtype)
    logits += min(logit_rows, SOFTMAX_ROWS) * profile.vocab_size * _SOFTMAX_BYTES
    return working + logits


def _together(needs: Sequence[_Needs], sweep: Sequence[int]) -> _Needs:
    return _Needs(
        carried=sum(needs[place].carried for place in sweep),
        inside=max(needs[place].inside for place in sweep),
    )


def _filled(needs: Sequence[_Needs], room: int) -> tuple[tuple[int, ...], ...]:
    sweeps: list[list[int]] = []
    carried = inside = 0
    for place, need in enumerate(needs):
        carried, inside = carried + need.carried, max(inside, need.inside)
        if sweeps and carried + inside <= room:
            sweeps[-1].append(place)
        else:
            sweeps.append([place])
            carried, inside = need.carried, need.inside
    return tuple(tuple(sweep) for sweep in sweeps)


def _divided(requests: Sequence[ScoringSize], batches: int) -> tuple[tuple[int, ...], ...]:
    total = sum(sum(request.forwards) for request in requests)
    sweeps: list[list[int]] = [[] for _ in range(batches)]
    passed = 0
    for place, request in enumerate(requests):
        tokens = sum(request.forwards)
        middle = (passed + tokens / 2) / max(1, total)
        sweeps[min(batches - 1, int(middle * batches))].append(place)
        passed += tokens
    return tuple(tuple(sweep) for sweep in sweeps if sweep)
