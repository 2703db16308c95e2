"""A job of many rows on several machines, by hand-made numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerstream.errors import PlanError
from layerstream.planning.cluster import simulate_cluster
from layerstream.planning.placement import plan_placement
from layerstream.spec.cluster import ClusterForecast
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import PlacementPlan
from layerstream.spec.profiles import Machine
from layerstream.spec.speculation import DraftForecast

from .shapes import small_model

WORKLOAD = Workload(batch_size=10, prompt_tokens=16, new_tokens=10)
HOUR_S = 3600.0


@pytest.fixture
def plan() -> PlacementPlan:
    """A plan in which a batch of ten rows takes an hour: half for the prompt, half for nine more sweeps."""
    made = plan_placement(
        profile=small_model(),
        budget=MemoryBudget(device="min"),
        workload=WORKLOAD,
        machine=Machine(device_memory_bytes=10**10, host_memory_bytes=10**10),
    )
    cost = replace(made.cost, prefill_s=HOUR_S / 2, sweep_s=HOUR_S / 18, read_bytes=1000, read_s=10.0)
    return replace(made, cost=cost)


def forecast(
    plan: PlacementPlan, rows: int, *machines: int, load_s: float = 360.0, price: float = 2.0
) -> ClusterForecast:
    return simulate_cluster(
        plan, workload=WORKLOAD, rows=rows, machines=machines, price_per_hour=price, load_s=load_s
    )


def test_one_machine_takes_its_batches_one_after_the_other(plan: PlacementPlan) -> None:
    run = forecast(plan, 1000, 1).runs[0]
    assert run.hours == pytest.approx(100.1)
    assert run.cost == pytest.approx(200.2)
    assert run.sweeps == 100 * 10
    assert run.read_bytes == 1000 * 1000
    assert run.rows_per_machine == 1000


def test_ten_machines_load_ten_times_and_wait_a_tenth(plan: PlacementPlan) -> None:
    run = forecast(plan, 1000, 10).runs[0]
    assert run.hours == pytest.approx(10.1)
    assert run.cost == pytest.approx(202.0)
    assert run.read_bytes == 1000 * 1000
    assert run.rows_per_machine == 100


def test_batches_that_are_not_full_read_as_much_as_full_ones(plan: PlacementPlan) -> None:
    few, many = forecast(plan, 100, 10, 20).runs
    assert many.rows_per_machine == 5
    assert many.hours == few.hours
    assert many.read_bytes == 2 * few.read_bytes
    assert many.cost == pytest.approx(2 * few.cost)


def test_machines_without_rows_read_nothing_but_are_paid_for(plan: PlacementPlan) -> None:
    run = forecast(plan, 3, 5).runs[0]
    assert run.rows_per_machine == 1
    assert run.sweeps == 3 * 10
    assert run.cost == pytest.approx(5 * run.hours * 2.0)


@pytest.mark.parametrize(
    ("rows", "load_s", "expected"),
    [
        (1000, 0.0, 100),  # without loading, machine-hours stay the same down to one batch each
        (1000, 360.0, 25),  # 50 would save 2.0 hours of 4.1 for 2.5 machine-hours more
        (1000, 100 * HOUR_S, 1),  # a second machine loads for 100 hours and saves 50
        (10, 0.0, 1),
        (1, 0.0, 1),
    ],
)
def test_machines_pay_as_long_as_they_save_more_hours_than_they_add(
    rows: int, load_s: float, expected: int, plan: PlacementPlan
) -> None:
    assert forecast(plan, rows, 1, load_s=load_s).most_machines == expected


def test_scoring_takes_one_sweep_for_a_batch(plan: PlacementPlan) -> None:
    made = simulate_cluster(plan, workload=replace(WORKLOAD, new_tokens=0), rows=100, load_s=0.0)
    assert (made.sweeps_per_batch, made.batch_s) == (1, HOUR_S / 2)


def test_a_draft_makes_sweeps_fewer(plan: PlacementPlan) -> None:
    draft = DraftForecast(acceptance=0.5, drafted=4, tokens_per_sweep=3.0, token_s=100.0, plain_token_s=200.0)
    made = simulate_cluster(replace(plan, draft_forecast=draft), workload=WORKLOAD, rows=10)
    assert made.sweeps_per_batch == 1 + 3
    assert made.batch_s == pytest.approx(HOUR_S / 2 + 9 * 100.0)


def test_without_a_time_for_loading_the_disk_reads_all_weights_once(plan: PlacementPlan) -> None:
    weight_bytes = sum(unit.read_bytes for unit in plan.units)
    made = simulate_cluster(plan, workload=WORKLOAD, rows=10)
    assert made.load_s == pytest.approx(weight_bytes / 100.0)
    nothing_streamed = replace(plan, cost=replace(plan.cost, read_bytes=0))
    assert simulate_cluster(nothing_streamed, workload=WORKLOAD, rows=10).load_s == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"machines": ()},
        {"machines": (1, 0)},
        {"price_per_hour": -1.0},
        {"load_s": float("inf")},
        {"load_s": float("nan")},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, object], plan: PlacementPlan) -> None:
    with pytest.raises(PlanError, match="got"):
        simulate_cluster(plan, workload=WORKLOAD, **{"rows": 10, **wrong})  # type: ignore[arg-type]


def test_the_table_has_a_row_for_each_number_of_machines_and_says_how_many_pay(plan: PlacementPlan) -> None:
    text = forecast(plan, 1000, 1, 25).explain()
    assert "in batches of 10; a batch takes 10 sweeps, 1 h 00 min; loading takes 6 min 00 s" in text
    assert text.splitlines()[2].split() == ["1", "1,000", "100", "1,000", "977", "KiB", "200"]
    assert "up to 25 machines pay" in text


def test_without_a_price_there_is_no_cost(plan: PlacementPlan) -> None:
    assert "cost" not in forecast(plan, 1000, 1, price=0.0).explain()


def test_a_forecast_travels_as_json(plan: PlacementPlan) -> None:
    made = forecast(plan, 1000, 1, 2)
    assert ClusterForecast.from_dict(made.to_dict()) == made
