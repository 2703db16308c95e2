"""`layerstream plan --rows`: what a job of many rows takes on several machines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BudgetTooSmallError, PlanError
from ..planning.cluster import simulate_cluster
from ..planning.cost import workload_s
from ..planning.micro_batches import MOST_ROWS
from ..spec.cluster import ClusterForecast
from ..spec.options import LoadOptions, Workload
from . import backend

if TYPE_CHECKING:
    from ..spec.plans import PlacementPlan
    from ..spec.profiles import Machine, ModelProfile


class ClusterQuestion(NamedTuple):
    """What is asked about a job.

    Attributes:
        rows: how many rows it has.
        machines: the numbers of machines to show.
        price_per_hour: the price of one machine.
        load_s: the seconds until a machine computes; None for what the disk needs.
        workload: the lengths of a row; how many rows share a sweep is in its batch size.
        fixed_batch: the batch size was given, and is not to be searched for.
    """

    rows: int
    machines: tuple[int, ...]
    price_per_hour: float
    load_s: float | None
    workload: Workload
    fixed_batch: bool


def machines_from_text(text: str) -> tuple[int, ...]:
    """Return the numbers in text such as `1,2,4,8`.

    Raises:
        PlanError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise PlanError(f"--machines {text!r} is not a list of numbers such as 1,2,4,8")
    return tuple(int(part) for part in parts)


def plan_rows(
    profile: ModelProfile, options: LoadOptions, machine: Machine, question: ClusterQuestion
) -> tuple[PlacementPlan, ClusterForecast]:
    """Return the plan for one machine and the forecast for several.

    Unless the batch size is fixed, it is the power of two with which a row takes the least time within the
    budget. With budget 'min' there is no search: the batch size stays 1.

    Raises:
        BudgetTooSmallError: the budget has room for no row.
    """
    size = question.workload.batch_size
    plan = _plan(profile, options, machine, replace(question.workload, batch_size=size))
    best = (_row_s(plan, question.workload, size), plan, size)
    searches = not question.fixed_batch and options.memory_budget.device != "min"
    while searches and size * 2 <= min(MOST_ROWS, question.rows):
        size *= 2
        try:
            plan = _plan(profile, options, machine, replace(question.workload, batch_size=size))
        except BudgetTooSmallError:
            break
        best = min(best, (_row_s(plan, question.workload, size), plan, size), key=lambda one: one[0])
    _, plan, size = best
    forecast = simulate_cluster(
        plan,
        workload=replace(question.workload, batch_size=size),
        rows=question.rows,
        machines=question.machines,
        price_per_hour=question.price_per_hour,
        load_s=question.load_s,
    )
    return plan, forecast


def _plan(profile: ModelProfile, options: LoadOptions, machine: Machine, workload: Workload) -> PlacementPlan:
    return backend.plan_with_own_draft(profile, replace(options, workload=workload), [machine])


def _row_s(plan: PlacementPlan, workload: Workload, rows: int) -> float:
    return workload_s(plan.cost, workload.new_tokens) / rows
