"""Whether a forward is as planned, beyond the workload or beyond the budget, as a table of sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.planning.forward_limits import ForwardLimits, ForwardSize, Verdict, forward_limits
from layerstream.planning.ledger import activation_bytes, cache_bytes
from layerstream.planning.placement import device_limit_bytes, plan_placement
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.profiles import Machine
from layerstream.spec.sizes import GIB

from .shapes import HIDDEN, VOCABULARY, card, cpu, llama_70b

PROFILE = llama_70b()
WORKLOAD = Workload(batch_size=4, prompt_tokens=100, new_tokens=50)
PLANNED, WORKLOAD_EXCEEDED, BUDGET_EXCEEDED = Verdict.PLANNED, Verdict.BEYOND_WORKLOAD, Verdict.BEYOND_BUDGET


def limits_with(room_bytes: int, workload: Workload = WORKLOAD, *, devices: int = 1) -> ForwardLimits:
    """Return limits of the 70B shape that leave `room_bytes` more than the plan takes."""
    machine = card(64, 64)
    plan = plan_placement(
        profile=PROFILE,
        budget=MemoryBudget(device="min"),
        workload=workload,
        machine=machine,
        other_machines=[machine] * (devices - 1),
    )
    return forward_limits(plan, PROFILE, workload, plan.ledger.device_bytes + room_bytes)


@pytest.mark.parametrize(
    ("rows", "tokens", "cached", "room_bytes", "verdict"),
    [
        (4, 100, 100, 0, PLANNED),
        (4, 1, 150, 0, PLANNED),
        (1, 1, 1, 0, PLANNED),
        # a longer prompt in fewer rows takes no more than planned
        (1, 300, 300, 0, PLANNED),
        (1, 401, 401, 4 * GIB, WORKLOAD_EXCEEDED),
        (4, 101, 101, 4 * GIB, WORKLOAD_EXCEEDED),
        (5, 100, 100, 4 * GIB, WORKLOAD_EXCEEDED),
        (5, 1, 150, 4 * GIB, WORKLOAD_EXCEEDED),
        (4, 1, 151, 4 * GIB, WORKLOAD_EXCEEDED),
        (4, 1, 151, 0, WORKLOAD_EXCEEDED),
        # without a cache, a text may be as long as prompt and answer
        (4, 120, 0, 0, PLANNED),
        (4, 400, 0, 4 * GIB, WORKLOAD_EXCEEDED),
        (4, 5000, 5000, 0, BUDGET_EXCEEDED),
        (40, 100, 100, 0, BUDGET_EXCEEDED),
        (4, 1, 5000, 0, BUDGET_EXCEEDED),
    ],
)
def test_a_forward_is_judged_by_its_size_and_its_bytes(
    rows: int, tokens: int, cached: int, room_bytes: int, verdict: Verdict
) -> None:
    size = ForwardSize(rows=rows, tokens=tokens, cached_tokens=cached)
    assert limits_with(room_bytes).judge(size) is verdict


def test_the_planned_workload_takes_what_the_ledger_says() -> None:
    limits = limits_with(0)
    size = ForwardSize(rows=4, tokens=100, cached_tokens=150)
    assert limits.needed_bytes(size) == limits.planned_bytes == limits.limit_bytes


def test_a_forward_without_a_cache_takes_only_activations() -> None:
    limits = limits_with(0)
    size = ForwardSize(rows=4, tokens=130, cached_tokens=0)
    wide = Workload(batch_size=4, prompt_tokens=130)
    assert limits.needed_bytes(size) == limits.fixed_bytes + activation_bytes(PROFILE.activation, wide)


def test_logits_count_where_they_take_more_than_the_blocks() -> None:
    limits = limits_with(0)
    few, all_logits = (
        ForwardSize(rows=4, tokens=200, cached_tokens=200, logit_rows=logit_rows) for logit_rows in (1, 200)
    )
    logits = 4 * 200 * 2 * (VOCABULARY + HIDDEN)
    cache = cache_bytes(PROFILE.activation, Workload(batch_size=4, prompt_tokens=200, new_tokens=0))
    assert limits.needed_bytes(all_logits) == limits.fixed_bytes + cache + max(
        logits, limits.needed_bytes(few) - limits.fixed_bytes - cache
    )
    wider = replace(limits, logits_bytes=20 * limits.logits_bytes)
    assert wider.needed_bytes(all_logits) > wider.needed_bytes(few)


def test_every_replica_on_a_device_takes_its_share_of_the_budget() -> None:
    size = ForwardSize(rows=5, tokens=100, cached_tokens=100)
    extra = [limits_with(0, devices=devices) for devices in (1, 2)]
    one, two = (limits.needed_bytes(size) - limits.fixed_bytes for limits in extra)
    assert two == 2 * one


@pytest.mark.parametrize(
    ("size", "workload"),
    [
        ((2, 300, 300), Workload(batch_size=2, prompt_tokens=300, new_tokens=50)),
        ((8, 1, 151), Workload(batch_size=8, prompt_tokens=100, new_tokens=51)),
        ((1, 300, 900), Workload(batch_size=1, prompt_tokens=300, new_tokens=600)),
    ],
    ids=["long prompt", "many rows, long answer", "both"],
)
def test_the_fitting_workload_is_one_whose_plan_holds_the_forward(
    size: tuple[int, int, int], workload: Workload
) -> None:
    rows, tokens, cached = size
    forward = ForwardSize(rows=rows, tokens=tokens, cached_tokens=cached)
    assert limits_with(0).fitting_workload(forward) == workload
    assert limits_with(0, workload).judge(forward) is PLANNED


def test_the_fitting_workload_keeps_chunked_prefill() -> None:
    limits = limits_with(0, replace(WORKLOAD, prefill_chunk_tokens=32))
    fitting = limits.fitting_workload(ForwardSize(rows=1, tokens=900, cached_tokens=900))
    assert fitting.prefill_chunk_tokens == 32


SIZES = st.builds(
    ForwardSize,
    rows=st.integers(1, 64),
    tokens=st.integers(1, 5000),
    cached_tokens=st.integers(0, 5000),
    logit_rows=st.integers(0, 5000),
)
ORDER = list(Verdict)


@given(size=SIZES, more=SIZES, room_bytes=st.integers(0, 8 * GIB))
def test_a_larger_forward_is_never_judged_more_kindly(
    size: ForwardSize, more: ForwardSize, room_bytes: int
) -> None:
    limits = replace(LIMITS, limit_bytes=LIMITS.planned_bytes + room_bytes)
    larger = ForwardSize(
        rows=size.rows + more.rows,
        tokens=size.tokens + more.tokens,
        cached_tokens=size.cached_tokens + more.cached_tokens,
        logit_rows=size.logit_rows + more.logit_rows,
    )
    assert ORDER.index(limits.judge(larger)) >= ORDER.index(limits.judge(size))


LIMITS = limits_with(0)


@pytest.mark.parametrize(
    ("device", "machine", "limit_bytes"),
    [
        ("16 GiB", card(20, 64), 16 * GIB),
        ("auto", card(20, 64), 20 * GIB),
        # "min" names no limit of its own: what is free is the limit
        ("min", card(20, 64), 20 * GIB),
        ("min", cpu(10 * GIB), 9 * GIB),
    ],
)
def test_the_limit_is_the_budget_and_for_min_what_is_free(
    device: str, machine: Machine, limit_bytes: int
) -> None:
    budget = MemoryBudget(device=device)
    plan = plan_placement(profile=PROFILE, budget=budget, workload=WORKLOAD, machine=machine)
    assert device_limit_bytes(plan, budget, [machine]) == limit_bytes


def test_a_plan_for_less_memory_than_free_never_has_a_limit_below_itself() -> None:
    machine, budget = card(0.1, 64), MemoryBudget(device="min")
    plan = plan_placement(profile=PROFILE, budget=budget, workload=WORKLOAD, machine=machine)
    assert device_limit_bytes(plan, budget, [machine]) == plan.ledger.device_bytes > 0.1 * GIB
