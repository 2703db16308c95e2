"""Scoring plans as a table: lengths and memory in, sweeps out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerstream.errors import PlanError
from layerstream.planning.scoring_sweeps import ScoringSize, plan_scoring_sweeps
from layerstream.spec.plans import (
    Granularity,
    LedgerKind,
    LedgerLine,
    MemoryLedger,
    MemoryTier,
    PlacementPlan,
    Residency,
    SweepCost,
    UnitPlacement,
)
from layerstream.spec.profiles import ActivationProfile, ModelProfile, UnitProfile

NUM_BLOCKS = 10
FIXED = 1_000_000
PROFILE = ModelProfile(
    name="table",
    model_type="llama",
    dtype="float16",
    num_parameters=1,
    blocks=tuple(
        UnitProfile(
            name=f"b.{i}", block=i, weight_bytes=1, slot_bytes=1, host_bytes=1, read_bytes=1, num_parameters=1
        )
        for i in range(NUM_BLOCKS)
    ),
    hidden_size=100,
    vocab_size=1000,
    activation=ActivationProfile(
        fixed_bytes=0,
        bytes_per_token=2000.0,
        cache_bytes_per_token=400.0 * NUM_BLOCKS,
        cache_layer_share=1 / NUM_BLOCKS,
    ),
)


def plan_with(room: int, resident: frozenset[int] = frozenset()) -> PlacementPlan:
    """Return a plan that leaves `room` bytes after the weights and keeps `resident` blocks on the device."""
    units = tuple(
        UnitPlacement(
            name=f"b.{i}",
            block=i,
            residency=Residency.DEVICE if i in resident else Residency.DISK,
            weight_bytes=1,
            read_bytes=1,
        )
        for i in range(NUM_BLOCKS)
    )
    lines = (
        LedgerLine(kind=LedgerKind.SLOTS, where=MemoryTier.DEVICE, num_bytes=FIXED),
        LedgerLine(kind=LedgerKind.ACTIVATIONS, where=MemoryTier.DEVICE, num_bytes=12345),
    )
    cost = SweepCost(
        read_bytes=0, copy_bytes=0, read_s=0, copy_s=0, compute_s=0, sweep_s=0, prefill_s=0, limited_by="disk"
    )
    return PlacementPlan(
        model_name="table",
        dtype="float16",
        device="cpu",
        devices=("cpu",),
        granularity=Granularity.BLOCK,
        units=units,
        num_slots=1,
        slot_bytes=1,
        num_staging=0,
        embedding=None,
        head_slices=1,
        ledger=MemoryLedger(lines=lines, device_budget_bytes=FIXED + room, host_budget_bytes=0),
        cost=cost,
    )


def shared(prefix: int, *suffixes: int) -> ScoringSize:
    return ScoringSize(
        forwards=(prefix, *suffixes),
        context=(prefix, *(prefix + each for each in suffixes)),
        logit_rows=(1, *suffixes),
    )


def sizes_of(room: int, requests: list[ScoringSize], **settings: int) -> list[int]:
    sweeps = plan_scoring_sweeps(plan=plan_with(room), profile=PROFILE, requests=requests, **settings).sweeps
    assert [place for sweep in sweeps for place in sweep] == list(range(len(requests)))
    return [len(sweep) for sweep in sweeps]


# a prefix of 100 tokens carries 100 x 4 x 100 x 2 B, a suffix of 10 10 x (800 + 110) B, a task 640 KiB
CARRIED = 100 * 800 + 10 * 910 + 2 * 640 * 1024


@pytest.mark.parametrize(("fitting", "expected"), [(12, [12]), (6, [6, 6]), (5, [5, 5, 2]), (1, [1] * 12)])
def test_as_many_requests_share_a_sweep_as_memory_allows(fitting: int, expected: list[int]) -> None:
    one = plan_scoring_sweeps(plan=plan_with(0), profile=PROFILE, requests=[shared(100, 10)])
    carried, inside = (line.num_bytes for line in one.lines)
    assert carried == CARRIED
    assert sizes_of(fitting * carried + inside, [shared(100, 10)] * 12) == expected


def test_a_request_that_is_too_large_gets_a_sweep_of_its_own() -> None:
    small, large = shared(10, 2), shared(5000, 2)
    one = plan_scoring_sweeps(plan=plan_with(0), profile=PROFILE, requests=[small])
    assert sizes_of(3 * one.sweep_bytes, [small, large, small, small]) == [1, 1, 2]


@pytest.mark.parametrize(
    ("max_rows", "expected"), [(1, [1] * 9), (3, [3, 3, 3]), (5, [5, 4]), (9, [9]), (20, [9])]
)
def test_max_rows_overrides_memory(max_rows: int, expected: list[int]) -> None:
    assert sizes_of(0, [shared(100, 10)] * 9, max_rows=max_rows) == expected


def test_max_rows_counts_requests_and_not_their_tokens() -> None:
    requests = [shared(1000, 10), *[shared(100, 10)] * 10]
    assert sizes_of(0, requests, max_rows=6) == [6, 5]


def test_max_rows_below_1_is_refused() -> None:
    with pytest.raises(PlanError, match=r"max_rows must be at least 1, or None .*; got 0"):
        plan_scoring_sweeps(plan=plan_with(0), profile=PROFILE, requests=[shared(1, 1)], max_rows=0)


def test_no_requests_take_no_memory() -> None:
    scoring = plan_scoring_sweeps(plan=plan_with(0), profile=PROFILE, requests=[])
    assert scoring.sweeps == ()
    assert scoring.sweep_bytes == 0


def test_only_the_keys_and_values_between_two_moved_blocks_are_counted() -> None:
    """A prefix is read in each block before the next one; resident blocks are run through in one go."""
    inside = []
    for resident in (frozenset(), frozenset({1}), frozenset({1, 2, 3})):
        plan = plan_with(0, resident)
        inside.append(
            plan_scoring_sweeps(plan=plan, profile=PROFILE, requests=[shared(1000, 10)]).lines[1].num_bytes
        )
    one_layer = 1000 * 400
    assert inside[1] - inside[0] == one_layer
    assert inside[2] - inside[0] == 3 * one_layer


def test_on_a_resident_model_no_task_is_suspended() -> None:
    plan = plan_with(0, frozenset(range(NUM_BLOCKS)))
    assert plan.is_resident
    one, ten = (
        plan_scoring_sweeps(plan=plan, profile=PROFILE, requests=[shared(100, 10)] * n, max_rows=n)
        for n in (1, 10)
    )
    assert one.sweep_bytes == ten.sweep_bytes


def test_a_whole_text_has_no_cache() -> None:
    whole = ScoringSize(forwards=(109,), context=(109,), logit_rows=(10,), is_shared=False)
    scoring = plan_scoring_sweeps(plan=plan_with(0), profile=PROFILE, requests=[whole])
    assert scoring.lines[1].num_bytes == 109 * 2000 + 10 * 1000 * (2 + 8)


def test_the_plan_explains_itself() -> None:
    text = plan_scoring_sweeps(
        plan=plan_with(0), profile=PROFILE, requests=[shared(100, 10)] * 3, max_rows=2
    ).explain()
    assert "3 requests in 2 sweeps" in text


def test_a_quadratic_score_matrix_is_counted_across_the_prefix() -> None:
    eager = replace(PROFILE, activation=replace(PROFILE.activation, bytes_per_token_squared=8.0))
    flash_inside, eager_inside = (
        plan_scoring_sweeps(plan=plan_with(0), profile=profile, requests=[shared(1000, 500)])
        .lines[1]
        .num_bytes
        for profile in (PROFILE, eager)
    )
    assert eager_inside > flash_inside
