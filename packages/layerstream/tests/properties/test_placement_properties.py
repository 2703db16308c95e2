"""What holds for every plan, whatever the model and the machine."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstream.errors import BudgetTooSmallError
from layerstream.planning.placement import plan_placement
from layerstream.planning.residency import spread, spread_within
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import Granularity, PlacementPlan, Residency
from layerstream.spec.profiles import Machine, ModelProfile

from .strategies import MB, machines, models

WORKLOAD = Workload(prompt_tokens=64, new_tokens=32)


def _plan(
    model: ModelProfile, machine: Machine, device: int | str, host: int | str = "auto"
) -> PlacementPlan:
    return plan_placement(
        profile=model, budget=MemoryBudget(device=device, host=host), workload=WORKLOAD, machine=machine
    )


def _total_s(plan: PlacementPlan) -> float:
    return plan.cost.prefill_s + WORKLOAD.new_tokens * plan.cost.sweep_s


def _with_ample_host_memory(machine: Machine) -> Machine:
    return replace(machine, host_memory_bytes=4000 * MB)


@given(model=models(), machine=machines, extra=st.integers(0, 600))
@settings(max_examples=80, deadline=None)
def test_no_plan_exceeds_its_budgets_and_every_unit_is_placed_once_in_order(
    model: ModelProfile, machine: Machine, extra: int
) -> None:
    machine = _with_ample_host_memory(machine)
    plan = _plan(model, machine, _plan(model, machine, "min").ledger.device_budget_bytes + extra * MB)
    assert plan.ledger.device_bytes <= plan.ledger.device_budget_bytes
    assert plan.ledger.host_bytes <= plan.ledger.host_budget_bytes
    decoder = {
        Granularity.BLOCK: model.blocks,
        Granularity.PART: model.parts,
        Granularity.LAYER: model.layers,
    }[plan.granularity]
    expected = [unit.name for unit in decoder] + ([model.head.name] if model.head else [])
    assert [unit.name for unit in plan.units] == expected
    streamed = [unit for unit in plan.units if unit.residency is not Residency.DEVICE]
    assert bool(streamed) == bool(plan.num_slots)
    assert (plan.num_staging > 0) == (not machine.device_is_host and plan.count(Residency.DISK) > 0)
    assert plan.cost.read_bytes == pytest.approx(
        sum(unit.read_bytes for unit in streamed if unit.residency is Residency.DISK), abs=plan.head_slices
    )


@given(model=models(), machine=machines)
@settings(max_examples=60, deadline=None)
def test_needed_bytes_suffice_and_one_byte_less_does_not(model: ModelProfile, machine: Machine) -> None:
    machine = _with_ample_host_memory(machine)
    with pytest.raises(BudgetTooSmallError) as caught:
        _plan(model, machine, 1)
    needed = caught.value.needed_bytes
    least = _plan(model, machine, "min")
    assert _plan(model, machine, needed) == least
    assert least.ledger.device_bytes == needed
    with pytest.raises(BudgetTooSmallError):
        _plan(model, machine, needed - 1)


@given(model=models(), machine=machines, device_extra=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_the_least_host_memory_suffices_and_one_byte_less_does_not(
    model: ModelProfile, machine: Machine, device_extra: int
) -> None:
    machine = replace(_with_ample_host_memory(machine), device="cuda:0")
    device = _plan(model, machine, "min").ledger.device_bytes + device_extra * MB
    least = _plan(model, machine, device, "min")
    assert (
        least.ledger.host_bytes
        <= least.ledger.host_budget_bytes
        <= _plan(model, machine, device).ledger.host_budget_bytes
    )
    with pytest.raises(BudgetTooSmallError) as caught:
        _plan(model, machine, device, least.ledger.host_budget_bytes - 1)
    assert caught.value.where == "host"
    assert caught.value.needed_bytes == least.ledger.host_budget_bytes


@given(model=models(), machine=machines, extras=st.lists(st.integers(0, 400), min_size=2, max_size=5))
@settings(max_examples=120, deadline=None)
def test_more_device_budget_never_makes_the_predicted_time_worse(
    model: ModelProfile, machine: Machine, extras: list[int]
) -> None:
    machine = _with_ample_host_memory(machine)
    needed = _plan(model, machine, "min").ledger.device_bytes
    times = [
        _total_s(_plan(model, machine, needed + extra * MB, 1200 * MB)) for extra in [0, *sorted(extras)]
    ]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(times))


@given(num_units=st.integers(1, 600), share=st.floats(0, 1))
def test_the_gaps_between_residents_differ_by_at_most_one(num_units: int, share: float) -> None:
    chosen = spread(num_units, round(share * num_units))
    assert len(chosen) == round(share * num_units) == len(set(chosen))
    # a sweep is a loop: the gap from the last to the first counts as well
    gaps = [b - a for a, b in itertools.pairwise(chosen)] + (
        [chosen[0] + num_units - chosen[-1]] if chosen else []
    )
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60), room=st.integers(-10, 2000))
def test_units_in_host_memory_never_exceed_its_room(sizes: list[int], room: int) -> None:
    chosen = spread_within(sizes, room)
    assert sum(sizes[index] for index in chosen) <= max(room, 0)
    assert len(chosen) == len(sizes) or sum(sizes) > room
