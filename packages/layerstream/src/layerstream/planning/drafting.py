"""What drafts take, and what they are worth: bytes, tokens per sweep and seconds. No torch.

A sweep takes as long for one token as for many, until computing them takes longer than moving the weights. So
a draft is weighed by the seconds of drafting and verifying a token against the chance that it is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec

from ..spec.options import LOOKUP, OwnCopy, Workload
from ..spec.plans import SweepCost
from ..spec.profiles import Machine, ModelProfile
from ..spec.sizes import dtype_bytes
from ..spec.speculation import DraftForecast, DraftNeeds
from .ledger import activation_bytes, all_unit_bytes, cache_bytes, cache_growth_bytes

MOST_DRAFTED = 64
"""The most drafted tokens per sweep. Longer chains gain little where one token in twenty is rejected."""

MOST_AHEAD = 64
"""The most tokens that are drafted while a sweep verifies others."""

ACCEPTANCE = {OwnCopy.INT8.value: 0.97, OwnCopy.NF4.value: 0.8, LOOKUP: 0.3}
"""The chance that a drafted token is accepted if those before it were, as measured with SmolLM2-135M.

Larger models change less when they are rounded.
"""

MODEL_ACCEPTANCE = 0.7
"""The same for a smaller model: an assumption."""

INT8_SCALE_BYTES = 2
NF4_BLOCK = 64
"""Weights that share a scale of 4 bytes, as in bitsandbytes."""

CAST_WEIGHTS = 2**22
"""The most int8 weights that are cast at a time on a CPU, to read a prompt."""

_NF4_ROWS, _NF4_COLUMNS = 32, 64
"""bitsandbytes' CPU kernel needs multiples of these; other weights stay as they are."""


def expected_tokens(acceptance: float, depth: int) -> float:
    """Return the tokens that a sweep gives on average: the accepted ones and the target's own next one.

    Args:
        acceptance: the chance that a drafted token is accepted if those before it were.
        depth: drafted tokens in a row.

    Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, equation 1.
    """
    if acceptance >= 1.0:
        return depth + 1.0
    return float((1.0 - acceptance ** (depth + 1)) / (1.0 - acceptance))


def can_be_low_bit(kind: OwnCopy, rows: int, columns: int) -> bool:
    """Return whether a linear layer of `[rows, columns]` can have its weight in fewer bits."""
    return kind is OwnCopy.INT8 or not (rows % _NF4_ROWS or columns % _NF4_COLUMNS)


def low_bit_bytes(kind: OwnCopy, rows: int, columns: int) -> int:
    """Return the bytes of a weight of `[rows, columns]` with its scales."""
    if kind is OwnCopy.INT8:
        return rows * (columns + INT8_SCALE_BYTES)
    return rows * columns // 2 + rows * columns // NF4_BLOCK * 4


def draft_dtype(dtype: str, machine: Machine) -> str:
    """Return the dtype of a copy with fewer bits: on a CPU bfloat16, in which torch computes int8 fastest."""
    return "bfloat16" if machine.device_is_host else dtype


def own_copy_needs(kind: OwnCopy, profile: ModelProfile, workload: Workload, machine: Machine) -> DraftNeeds:
    """Return what a copy with fewer bits takes on the device, in addition to the model."""
    full = dtype_bytes(profile.dtype, 1)
    shapes = [shape for shape in profile.linears if can_be_low_bit(kind, shape.rows, shape.columns)]
    full_bytes = sum(full * shape.count * shape.rows * shape.columns for shape in shapes)
    low_bytes = sum(shape.count * low_bit_bytes(kind, shape.rows, shape.columns) for shape in shapes)
    needs = model_needs(
        kind.value, profile, workload, saved_bytes=full_bytes - low_bytes, verified_by=profile
    )
    if kind is OwnCopy.NF4:
        return needs
    largest = max((shape.rows * shape.columns for shape in shapes), default=0)
    if machine.device_is_host:
        cast_bytes = dtype_bytes("float32", min(CAST_WEIGHTS, largest))
        return replace(needs, num_bytes=needs.num_bytes + cast_bytes)
    # Off the CPU, each int8 weight is cast for every token: written once and read once more.
    return replace(
        needs, num_bytes=needs.num_bytes + full * largest, token_bytes=needs.token_bytes + 2 * full_bytes
    )


def model_needs(
    name: str, profile: ModelProfile, workload: Workload, *, verified_by: ModelProfile, saved_bytes: int = 0
) -> DraftNeeds:
    """Return what a resident model takes as a draft, with its cache, activations and the verified logits.

    Its cache also holds the tokens that are drafted while a sweep verifies others.

    Args:
        name: what it is called.
        profile: its sizes.
        workload: what the target is asked, with room for the drafted tokens of a sweep.
        verified_by: the target.
        saved_bytes: how much smaller its weights are than the profile says.
    """
    head = profile.head
    weight_bytes = (
        all_unit_bytes(profile.blocks)
        + profile.edge_bytes
        + profile.embedding_bytes
        + (0 if head is None or profile.head_is_tied else head.slot_bytes)
        - saved_bytes
    )
    memory = profile.activation
    return DraftNeeds(
        name=name,
        num_bytes=weight_bytes
        + cache_bytes(memory, replace(workload, new_tokens=workload.new_tokens + MOST_AHEAD))
        + cache_growth_bytes(memory, workload)
        + activation_bytes(memory, workload)
        + logits_bytes(verified_by, workload),
        token_bytes=weight_bytes - profile.embedding_bytes * (not profile.head_is_tied),
        acceptance=ACCEPTANCE.get(name, MODEL_ACCEPTANCE),
    )


def drafts_without_another_model(machine: Machine) -> list[str]:
    """Return the names of the drafts that are worth a try for any model.

    On a CPU, bitsandbytes computes 4-bit weights more slowly than torch computes 8-bit ones.
    """
    takes_nf4 = has_bitsandbytes() and not machine.device_is_host
    return [OwnCopy.INT8.value, *([OwnCopy.NF4.value] if takes_nf4 else []), LOOKUP]


def has_bitsandbytes() -> bool:
    """Return whether bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


def lookup_needs(target: ModelProfile, workload: Workload) -> DraftNeeds:
    """Return what drafting n-grams of the text takes: the logits of the verified tokens."""
    return DraftNeeds(name=LOOKUP, num_bytes=logits_bytes(target, workload), acceptance=ACCEPTANCE[LOOKUP])


def logits_bytes(target: ModelProfile, workload: Workload) -> int:
    """Return the bytes of the logits of all drafted tokens; the profile counts those of one token."""
    return dtype_bytes(target.dtype, target.vocab_size) * MOST_DRAFTED * workload.batch_size


def forecast_draft(
    draft: DraftNeeds, cost: SweepCost, machine: Machine, counts: Iterable[int] | None = None
) -> DraftForecast:
    """Return how many tokens to draft so that a token takes the least time, and that time.

    Every verified token is computed by a forward of its own, as in plain generation. The forecast is that of
    a chain; a tree branches only where that promises more.

    Args:
        draft: what drafts.
        cost: the plan's cost of a sweep that computes one token.
        machine: where both run.
        counts: how many tokens may be drafted for a sweep; None: as many as the draft is told to, or any
            number.
    """
    if counts is None:
        counts = range(1, MOST_DRAFTED + 1) if draft.tokens is None else (draft.tokens,)
    draft_s = draft.token_bytes / machine.memory_bytes_per_s

    def forecast(count: int) -> DraftForecast:
        tokens = expected_tokens(draft.acceptance, count)
        sweep_s = max(cost.sweep_s, (count + 1) * cost.compute_s) + count * draft_s
        return DraftForecast(
            acceptance=draft.acceptance,
            drafted=count,
            tokens_per_sweep=tokens,
            token_s=sweep_s / tokens,
            plain_token_s=cost.sweep_s,
        )

    return min((forecast(count) for count in counts), key=lambda one: one.token_s)
