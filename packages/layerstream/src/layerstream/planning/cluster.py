"""Simulate a job of many rows on several machines: hours, bytes, cost, and when more machines stop paying.

Every machine has the whole model and some of the rows, and knows nothing of the others. It loads, then takes
its rows batch by batch; the rows of a batch share their sweeps. So a batch that is not full reads as much as
a full one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import PlanError
from ..spec.cluster import ClusterForecast, ClusterRun
from ..spec.options import Workload
from ..spec.plans import PlacementPlan

_HOUR_S = 3600.0


class _Job(NamedTuple):
    """A job as numbers: rows, rows of a batch, and what a machine and a batch take."""

    rows: int
    batch_rows: int
    load_s: float
    batch_s: float
    batch_sweeps: int
    sweep_bytes: int


def simulate_cluster(
    plan: PlacementPlan,
    *,
    workload: Workload,
    rows: int,
    machines: Sequence[int] = (1, 2, 4, 8),
    price_per_hour: float = 0.0,
    load_s: float | None = None,
) -> ClusterForecast:
    """Return what a job of many rows takes on each number of machines, and how many machines pay.

    The machines are alike, and each follows `plan` on its own. All of them are paid for until the last one
    is done.

    Args:
        plan: the plan for one machine.
        workload: what was planned for: `batch_size` rows share each sweep, and every row has
            `prompt_tokens` and `new_tokens`. With 0 new tokens the rows are scored, in one sweep.
        rows: how many rows the job has.
        machines: the numbers of machines to show.
        price_per_hour: the price of one machine, in any currency.
        load_s: the seconds until a machine computes: start, copy of the weights, loading. None takes the
            time in which the plan's disk reads all weights once, and 0 where the plan streams nothing.

    Raises:
        PlanError: a number is out of range.
    """
    _check(rows, machines, price_per_hour, load_s)
    job = _job_of(plan, workload, rows, _weights_s(plan) if load_s is None else load_s)
    return ClusterForecast(
        rows=rows,
        rows_per_sweep=job.batch_rows,
        sweeps_per_batch=job.batch_sweeps,
        batch_s=job.batch_s,
        load_s=job.load_s,
        price_per_hour=price_per_hour,
        runs=tuple(_run(job, count, price_per_hour) for count in machines),
        most_machines=_most_machines(job),
    )


def _check(rows: int, machines: Sequence[int], price_per_hour: float, load_s: float | None) -> None:
    if rows < 1 or not machines or min(machines) < 1:
        raise PlanError(
            f"a job needs at least one row and one machine; got {rows} rows and machines {list(machines)}"
        )
    for name, number in (("price_per_hour", price_per_hour), ("load_s", load_s or 0.0)):
        if not (number >= 0 and math.isfinite(number)):
            raise PlanError(f"{name} must be 0 or more; got {number}")


def _job_of(plan: PlacementPlan, workload: Workload, rows: int, load_s: float) -> _Job:
    # The prompt's sweep brings the first token.
    later_tokens = max(0, workload.new_tokens - 1)
    forecast = plan.draft_forecast
    tokens_per_sweep = 1.0 if forecast is None else forecast.tokens_per_sweep
    return _Job(
        rows=rows,
        batch_rows=workload.batch_size,
        load_s=load_s,
        batch_s=plan.cost.prefill_s + later_tokens * plan.token_s,
        batch_sweeps=1 + math.ceil(later_tokens / tokens_per_sweep),
        sweep_bytes=plan.cost.read_bytes,
    )


def _weights_s(plan: PlacementPlan) -> float:
    if not plan.cost.read_bytes:
        return 0.0
    return plan.cost.read_s / plan.cost.read_bytes * sum(unit.read_bytes for unit in plan.units)


def _run(job: _Job, machines: int, price_per_hour: float) -> ClusterRun:
    """Return the job on some machines, among which the rows are spread evenly."""
    each, more = divmod(job.rows, machines)
    batches = more * _batches(job, each + 1) + (machines - more) * _batches(job, each)
    hours = _wall_s(job, machines) / _HOUR_S
    return ClusterRun(
        machines=machines,
        rows_per_machine=each + (more > 0),
        sweeps=batches * job.batch_sweeps,
        read_bytes=batches * job.batch_sweeps * job.sweep_bytes,
        hours=hours,
        cost=machines * hours * price_per_hour,
    )


def _batches(job: _Job, rows: int) -> int:
    return -(-rows // job.batch_rows)


def _wall_s(job: _Job, machines: int) -> float:
    """Return the seconds until the machine with the most rows is done."""
    return job.load_s + _batches(job, -(-job.rows // machines)) * job.batch_s


def _most_machines(job: _Job) -> int:
    """Return the most machines that pay.

    Only those numbers count at which each machine gets a batch less: between them, a machine more changes
    nothing but the bill.
    """
    batches = _batches(job, job.rows)
    best = count = 1
    while (each := -(-batches // count)) > 1:
        count = -(-batches // (each - 1))
        saved_s = _wall_s(job, best) - _wall_s(job, count)
        added_s = count * _wall_s(job, count) - best * _wall_s(job, best)
        if saved_s >= added_s:
            best = count
    return best
