"""Which requests share a tensor and how many are admitted at once, as a table of lengths and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.errors import PlanError
from layerstream.planning.ledger import activation_bytes, cache_bytes
from layerstream.planning.micro_batches import MOST_PADDING, MOST_ROWS, RowRequest, plan_batch
from layerstream.planning.placement import plan_placement
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import LedgerKind, PlacementPlan
from layerstream.spec.request_plans import BatchPlan

from .shapes import card, cpu, llama_70b

PROFILE = llama_70b()


def placed(batch_size: int, device: str = "min") -> PlacementPlan:
    """Return a plan of the 70B shape for `batch_size` sequences of 512 + 128 tokens; at "min", no more."""
    workload = Workload(batch_size=batch_size, prompt_tokens=512, new_tokens=128)
    return plan_placement(
        profile=PROFILE, budget=MemoryBudget(device=device), workload=workload, machine=card(16, 64)
    )


def packed(plan: PlacementPlan, requests: Sequence[RowRequest], **settings: Any) -> BatchPlan:
    return plan_batch(plan=plan, profile=PROFILE, requests=requests, **settings)


def row(
    prompt_tokens: int, new_tokens: int = 128, *, kind: int = 0, rows: int = 1, is_alone: bool = False
) -> RowRequest:
    return RowRequest(
        kind=kind, rows=rows, prompt_tokens=prompt_tokens, new_tokens=new_tokens, is_alone=is_alone
    )


def test_similar_requests_share_one_tensor() -> None:
    plan = packed(placed(8), [row(500), row(512), row(480)])
    assert [micro_batch.requests for micro_batch in plan.micro_batches] == [(0, 1, 2)]
    assert (
        plan.micro_batches[0].rows,
        plan.micro_batches[0].prompt_tokens,
        plan.micro_batches[0].new_tokens,
    ) == (3, 512, 128)


def test_unpacked_requests_share_no_tensor() -> None:
    plan = packed(placed(8), [row(500), row(512), row(480)], packed=False)
    assert [micro_batch.requests for micro_batch in plan.micro_batches] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("other", [row(500, kind=1), row(500, is_alone=True)], ids=["kind", "alone"])
def test_different_requests_do_not_share_a_tensor(other: RowRequest) -> None:
    plan = packed(placed(8), [row(500), other, row(501)])
    assert [micro_batch.requests for micro_batch in plan.micro_batches] == [(0, 2), (1,)]


def test_short_prompts_are_not_padded_to_a_long_one() -> None:
    plan = packed(placed(8), [row(500), *[row(20, 4)] * 5])
    assert [micro_batch.requests for micro_batch in plan.micro_batches] == [(0, 1), (2, 3, 4, 5)]


def test_beams_count_as_rows() -> None:
    plan = packed(placed(8), [row(100, rows=3), row(100, rows=3)])
    assert [micro_batch.rows for micro_batch in plan.micro_batches] == [6]


def test_no_more_is_admitted_than_the_budget_has_room_for() -> None:
    """With room for eight sequences, forty cannot be admitted at once, but all of them run."""
    plan = packed(placed(8), [row(512)] * 40)
    inside = next(line.num_bytes for line in plan.lines if line.kind is LedgerKind.RUNNING_TASK)
    assert plan.capacity + inside <= plan.room_bytes
    assert all(micro_batch.weight <= plan.capacity for micro_batch in plan.micro_batches)
    assert sum(micro_batch.weight for micro_batch in plan.micro_batches) > plan.capacity
    assert sum(line.num_bytes for line in plan.lines) <= plan.room_bytes
    assert sum(micro_batch.rows for micro_batch in plan.micro_batches) == 40


def test_a_larger_budget_admits_more() -> None:
    requests = [row(512)] * 40
    small, large = packed(placed(4), requests), packed(placed(16), requests)
    assert small.capacity < large.capacity
    assert len(small.micro_batches) > len(large.micro_batches)


def test_an_admitted_micro_batch_counts_its_whole_cache_and_what_it_carries() -> None:
    (micro_batch,) = packed(placed(8), [row(512), row(512)]).micro_batches
    size = Workload(batch_size=2, prompt_tokens=512, new_tokens=128)
    cache, activations = cache_bytes(PROFILE.activation, size), activation_bytes(PROFILE.activation, size)
    assert cache < micro_batch.weight <= cache + activations


def test_a_request_too_large_for_the_budget_runs_alone() -> None:
    plan = packed(placed(1), [row(4096), row(512), row(4000)])
    assert [micro_batch.requests for micro_batch in plan.micro_batches] == [(0,), (1,), (2,)]
    assert plan.micro_batches[0].weight > plan.capacity


def test_max_rows_overrides_the_budget() -> None:
    requests = [row(512)] * 40
    plan = packed(placed(1), requests, max_rows=20)
    assert plan.capacity == 20
    assert [micro_batch.rows for micro_batch in plan.micro_batches] == [20, 20]
    assert [micro_batch.weight for micro_batch in plan.micro_batches] == [20, 20]
    with pytest.raises(PlanError, match=r"max_rows must be at least 1, or None .*; got 0"):
        packed(placed(1), requests, max_rows=0)


def test_max_rows_bounds_unpacked_requests_and_lets_a_larger_request_run_alone() -> None:
    plan = packed(placed(1), [row(512, rows=3), row(512), row(512)], max_rows=2)
    assert plan.capacity == 2
    assert [micro_batch.weight for micro_batch in plan.micro_batches] == [3, 2]
    plan = packed(placed(1), [row(512)] * 3, max_rows=2, packed=False)
    assert (plan.capacity, [micro_batch.weight for micro_batch in plan.micro_batches]) == (2, [1, 1, 1])


def test_the_plan_explains_itself() -> None:
    text = packed(placed(8), [row(512)] * 3).explain()
    assert "3 rows in 1 micro-batch of 3 rows" in text
    assert "left by the budget" in text
    assert "0 rows" in packed(placed(8), []).explain()


ROWS = st.builds(
    RowRequest,
    kind=st.integers(0, 2),
    rows=st.integers(1, 5),
    prompt_tokens=st.integers(1, 3000),
    new_tokens=st.integers(1, 400),
    is_alone=st.booleans(),
)


@given(requests=st.lists(ROWS, max_size=40), max_rows=st.none() | st.integers(1, 50), is_packed=st.booleans())
def test_every_request_is_in_one_micro_batch_of_its_kind(
    requests: list[RowRequest], max_rows: int | None, is_packed: bool
) -> None:
    machine = cpu(200 * 1024**3)
    placement = plan_placement(
        profile=PROFILE, budget=MemoryBudget(device="min"), workload=Workload(batch_size=4), machine=machine
    )
    plan = packed(placement, requests, max_rows=max_rows, packed=is_packed)
    assert sorted(index for micro_batch in plan.micro_batches for index in micro_batch.requests) == list(
        range(len(requests))
    )
    for micro_batch in plan.micro_batches:
        members = [requests[index] for index in micro_batch.requests]
        assert len({member.kind for member in members}) == 1
        assert len(members) == 1 or not any(member.is_alone for member in members)
        assert micro_batch.rows == sum(member.rows for member in members)
        assert len(members) == 1 or micro_batch.rows <= min(MOST_ROWS, max_rows or MOST_ROWS)
        whole = micro_batch.rows * (micro_batch.prompt_tokens + micro_batch.new_tokens)
        needed = sum(member.rows * (member.prompt_tokens + member.new_tokens) for member in members)
        assert whole - needed <= MOST_PADDING * whole
