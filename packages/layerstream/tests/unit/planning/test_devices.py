"""Plans for several devices: the smallest one decides, device bytes count per device and host bytes once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerstream.errors import BudgetTooSmallError, PlanError
from layerstream.planning.devices import group_devices
from layerstream.planning.ledger import WORKLOAD_KINDS, room_bytes
from layerstream.planning.placement import plan_placement
from layerstream.planning.simulate import simulate_spans
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import LedgerKind, MemoryTier, PlacementPlan, Residency
from layerstream.spec.profiles import Machine
from layerstream.spec.sizes import GIB
from layerstream.spec.timeline import Activity

from .shapes import card, cpu, llama_70b, small_model


def plan(machines: list[Machine], budget: MemoryBudget | None = None, **model: int) -> PlacementPlan:
    return plan_placement(
        profile=small_model(**model) if model else llama_70b(),
        budget=budget or MemoryBudget(),
        workload=Workload(prompt_tokens=1024, new_tokens=16),
        machine=machines[0],
        other_machines=machines[1:],
    )


def sizes(plan: PlacementPlan, where: MemoryTier) -> dict[LedgerKind, int]:
    return {line.kind: line.num_bytes for line in plan.ledger.lines if line.where is where}


def cards(*gib: float, host_gib: float = 32) -> list[Machine]:
    return [replace(card(size, host_gib), device=f"cuda:{index}") for index, size in enumerate(gib)]


def test_two_equal_devices_have_the_plan_of_one() -> None:
    one, two = plan(cards(16)), plan(cards(16, 16))
    assert two.devices == ("cuda:0", "cuda:1")
    assert (two.device, one.devices) == ("cuda:0", ("cuda:0",))
    # the ledger is equal too: device bytes count per device, and host bytes once
    assert replace(two, devices=one.devices) == one


def test_the_smallest_device_and_the_slowest_rates_decide() -> None:
    assert replace(plan(cards(16, 6)), devices=()) == replace(plan(cards(6, 16)), devices=())
    assert plan(cards(16, 6)).units == plan(cards(6)).units
    slow = replace(cards(16, 16)[1], copy_bytes_per_s=1e9)
    both = plan([cards(16)[0], slow])
    assert both.cost == plan([replace(slow, device="cuda:0")]).cost
    assert both.cost.copy_s > plan(cards(16)).cost.copy_s


def test_the_room_of_a_replica_does_not_depend_on_which_device_is_named_twice() -> None:
    one, other = cards(16, 16)
    alone, *shared = (
        room_bytes(plan(machines, MemoryBudget(device="8 GiB")))
        for machines in ([one], [one, one, other], [other, one, one], [one, other, one])
    )
    assert shared[0] == shared[1] == shared[2] < alone


def test_a_device_named_twice_holds_everything_twice_except_its_runtime() -> None:
    budget = MemoryBudget(device="min", host="min")
    one, two = plan(cards(16), budget), plan([*cards(16), *cards(16)], budget)
    assert two.devices == ("cuda:0", "cuda:0")
    for kind, size in sizes(one, MemoryTier.DEVICE).items():
        assert sizes(two, MemoryTier.DEVICE)[kind] == size * (1 if kind is LedgerKind.RUNTIME else 2), kind
    assert sizes(two, MemoryTier.HOST) == sizes(one, MemoryTier.HOST)


def test_replicas_on_the_cpu_share_weights_and_slots_but_not_cache_and_activations() -> None:
    budget = MemoryBudget(device="min")
    one, three = plan([cpu(64 * GIB)], budget), plan([cpu(64 * GIB)] * 3, budget)
    for kind, size in sizes(one, MemoryTier.DEVICE).items():
        assert sizes(three, MemoryTier.DEVICE)[kind] == size * (3 if kind in WORKLOAD_KINDS else 1), kind


def test_residents_of_a_shared_device_fit_its_budget() -> None:
    machines = [replace(card(1, 32), device="cuda:0", device_memory_bytes=150_000_000, runtime_bytes=0)] * 2
    two = plan(machines, num_blocks=8)
    assert 0 < two.count(Residency.DEVICE) < 8
    assert two.ledger.device_bytes <= 150_000_000
    assert sizes(two, MemoryTier.DEVICE)[LedgerKind.RESIDENT_BLOCKS] % 2 == 0
    assert plan(machines[:1], num_blocks=8).is_resident


def test_a_budget_too_small_for_one_of_the_devices_names_it() -> None:
    with pytest.raises(BudgetTooSmallError, match="on cuda:1 cannot hold 70b") as caught:
        plan(cards(16, 1, 16))
    assert caught.value.budget_bytes == 1 * GIB
    assert caught.value.needed_bytes > 1 * GIB
    with pytest.raises(BudgetTooSmallError, match="on cpu, shared by 2 replicas, cannot hold"):
        plan([cpu()] * 2, MemoryBudget(device=plan([cpu()], MemoryBudget(device="min")).ledger.device_bytes))


def test_a_cpu_and_an_accelerator_cannot_share_a_plan() -> None:
    with pytest.raises(PlanError, match="cpu, cuda:0 cannot share one plan"):
        plan([cpu(), *cards(16)])
    with pytest.raises(PlanError, match="at least one device"):
        group_devices([])


def test_replicas_on_one_device_share_its_rates() -> None:
    group = group_devices([cpu(), cpu()])
    assert group.machine.flops_per_s == cpu().flops_per_s / 2
    assert group.machine.memory_bytes_per_s == cpu().memory_bytes_per_s / 2
    assert group.machine.disk_bytes_per_s == cpu().disk_bytes_per_s
    assert group_devices(cards(16, 16)).machine.flops_per_s == card(16, 32).flops_per_s


def test_simulated_replicas_on_one_device_compute_at_their_share_of_its_rate() -> None:
    profile, machine = llama_70b(), cpu(64 * GIB)
    spans = []
    for replicas in (1, 2):
        shared = plan([machine] * replicas, MemoryBudget(device="min"))
        spans.append(
            sum(
                s.duration_s
                for s in simulate_spans(shared, profile, machine, 1, 1)
                if s.activity is Activity.COMPUTE
            )
        )
    assert spans[1] == pytest.approx(2 * spans[0], rel=0.05)


def test_explain_names_every_device_and_says_that_they_share_reads() -> None:
    text = plan(cards(16, 16)).explain()
    assert "on cuda:0 and cuda:1, which share every sweep's reads" in text
    assert "device memory (on each of cuda:0, cuda:1)" in text
    assert "share" not in plan(cards(16)).explain()
