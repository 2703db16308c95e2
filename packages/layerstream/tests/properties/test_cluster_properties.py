"""What holds for every job on any number of machines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.planning.cluster import simulate_cluster
from layerstream.spec.cluster import ClusterForecast
from layerstream.spec.options import Workload
from layerstream.spec.plans import Granularity, MemoryLedger, PlacementPlan, SweepCost

PLAN = PlacementPlan(
    model_name="any",
    dtype="float16",
    device="cpu",
    devices=("cpu",),
    granularity=Granularity.BLOCK,
    units=(),
    num_slots=2,
    slot_bytes=1,
    num_staging=0,
    embedding=None,
    head_slices=1,
    ledger=MemoryLedger(lines=(), device_budget_bytes=0, host_budget_bytes=0),
    cost=SweepCost(
        read_bytes=0,
        copy_bytes=0,
        read_s=0.0,
        copy_s=0.0,
        compute_s=0.0,
        sweep_s=0.0,
        prefill_s=0.0,
        limited_by="disk",
    ),
)


@st.composite
def jobs(draw: st.DrawFn, most_machines: int = 60) -> ClusterForecast:
    """A job on 1, 2, 3, … machines."""
    cost = replace(
        PLAN.cost,
        prefill_s=draw(st.floats(0.01, 1e4)),
        sweep_s=draw(st.floats(0.01, 1e4)),
        read_bytes=draw(st.integers(0, 10**12)),
    )
    workload = Workload(batch_size=draw(st.integers(1, 256)), new_tokens=draw(st.integers(0, 50)))
    return simulate_cluster(
        replace(PLAN, cost=cost),
        workload=workload,
        rows=draw(st.integers(1, 5000)),
        machines=range(1, most_machines + 1),
        price_per_hour=draw(st.floats(0, 100)),
        load_s=draw(st.floats(0, 1e5)),
    )


@given(job=jobs())
def test_more_machines_never_take_longer_nor_read_less(job: ClusterForecast) -> None:
    for fewer, more in zip(job.runs, job.runs[1:], strict=False):
        assert more.hours <= fewer.hours
        assert more.read_bytes >= job.runs[0].read_bytes


@given(job=jobs())
def test_no_number_of_machines_costs_less_than_the_sweeps_of_one(job: ClusterForecast) -> None:
    batches = -(-job.rows // job.rows_per_sweep)
    sweeps_cost = batches * job.batch_s / 3600 * job.price_per_hour
    for run in job.runs:
        assert run.cost >= sweeps_cost * (1 - 1e-9)
        assert run.sweeps >= batches * job.sweeps_per_batch
        assert run.hours * 3600 >= (job.load_s + job.batch_s) * (1 - 1e-9)


@given(job=jobs())
def test_every_row_has_a_machine(job: ClusterForecast) -> None:
    for run in job.runs:
        assert run.rows_per_machine * run.machines >= job.rows
        assert (run.rows_per_machine - 1) * run.machines < job.rows


@given(job=jobs())
def test_beyond_the_most_machines_no_number_pays(job: ClusterForecast) -> None:
    assert 1 <= job.most_machines <= -(-job.rows // job.rows_per_sweep)
    if job.most_machines > len(job.runs):
        return
    best = job.runs[job.most_machines - 1]
    for more in job.runs[job.most_machines :]:
        saved = best.hours - more.hours
        added = more.hours * more.machines - best.hours * best.machines
        assert saved < added or added == pytest.approx(saved)


@given(job=jobs())
def test_the_most_machines_save_what_they_add(job: ClusterForecast) -> None:
    if job.most_machines > len(job.runs):
        return
    best, one = job.runs[job.most_machines - 1], job.runs[0]
    added = best.hours * best.machines - one.hours
    assert one.hours - best.hours >= added - 1e-9 * abs(one.hours)
