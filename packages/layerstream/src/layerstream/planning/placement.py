"""The planner, which is also the simulator: a pure function from options and profiles to a plan.

Resolves the budgets, drops the configurations that do not fit, lets `search` find the fastest of the others
and returns it as a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import BudgetTooSmallError, PlanError
from ..spec.options import MemoryBudget, Workload
from ..spec.plans import MemoryLedger, PlacementPlan, Residency, SweepCost, UnitPlacement
from ..spec.profiles import HostPinning, Machine, ModelProfile
from ..spec.sizes import format_bytes, parse_size
from ..spec.speculation import DraftNeeds
from .arrange import Arrangement, PlanningProblem
from .candidates import Configuration, enumerate_configurations, visited_units
from .devices import group_devices
from .drafting import forecast_draft
from .search import Search

AUTO_CPU_SHARE = 0.9
AUTO_HOST_SHARE = 0.8


def plan_placement(
    *,
    profile: ModelProfile,
    budget: MemoryBudget,
    workload: Workload,
    machine: Machine,
    other_machines: Sequence[Machine] = (),
    allow_sliced_head: bool = False,
    draft: DraftNeeds | None = None,
    prefix_bytes: int = 0,
) -> PlacementPlan:
    """Return where every unit of a model lives, how much memory that takes and how long a sweep takes.

    Reads no file and touches no device, so the machine may be hardware you don't own.

    Args:
        profile: the model as numbers.
        budget: device and host memory. `"auto"` takes what `machine` has free (nine tenths of it on a CPU
            device, four fifths of host memory), `"min"` the least that works. A size is taken as given, even
            if the machine has less.
        workload: what will be run; its cache and activations are lines of the ledger.
        machine: memory and rates.
        other_machines: further devices that share every sweep's reads, each described as the machine with
            that device. All run the workload at the same time. The device budget and the ledger's device
            lines apply per device.
        allow_sliced_head: on accelerators, let a head that is larger than a slot be visited in slices, which
            needs less memory but may differ from the whole head in the last bit.
        draft: what proposes tokens, on the first device, and its memory; None without a draft.
        prefix_bytes: host memory for a service's prefix cache; on a CPU device it is device memory.

    Returns:
        The plan with the shortest predicted time for the workload; ties go to coarser units, then to fewer
        slots.

    Raises:
        BudgetTooSmallError: no configuration fits; `needed_bytes` is the smallest budget that would work,
            `where` the memory.
        PlanError: the machine's rates are not positive, the model has no blocks, or CPUs and accelerators are
            mixed.
    """
    group = group_devices((machine, *other_machines))
    _check(profile, group.machine)
    problem = PlanningProblem(
        profile=profile,
        workload=workload,
        machine=group.machine,
        replicas_per_device=group.replicas_per_device,
        allow_sliced_head=allow_sliced_head,
        draft_bytes=0 if draft is None else draft.num_bytes,
        prefix_bytes=prefix_bytes,
    )
    device_budget_bytes, configurations = _within_device_budget(
        problem, _configurations(problem, allow_sliced_head=allow_sliced_head), budget
    )
    configurations = _resident_if_it_fits(configurations)
    search = Search(problem=problem, device_budget_bytes=device_budget_bytes)
    host_budget_bytes = _host_budget_bytes(search, configurations, budget)
    arrangement, cost = search.best(configurations, host_budget_bytes)
    ledger = MemoryLedger(
        lines=arrangement.lines, device_budget_bytes=device_budget_bytes, host_budget_bytes=host_budget_bytes
    )
    placement = _as_plan(problem, group.names, arrangement, ledger, cost)
    if draft is None:
        return placement
    if draft.refusal:
        return replace(placement, draft_refusal=draft.refusal)
    return replace(placement, draft=draft.name, draft_forecast=forecast_draft(draft, cost, group.machine))


def device_limit_bytes(plan: PlacementPlan, budget: MemoryBudget, machines: Sequence[Machine]) -> int:
    """Return what forwards beyond the planned workload may take on each device, weights included.

    That is the budget. Only `"min"` names no limit of its own: it asks for the least that the workload takes,
    and what a larger forward takes in addition may come from what is free.

    Args:
        plan: the plan for `budget`.
        budget: what the user asked for.
        machines: the devices of the plan.
    """
    planned_bytes = plan.ledger.device_budget_bytes
    if budget.device != "min":
        return planned_bytes
    return max(planned_bytes, _auto_device_bytes(group_devices(machines).machine))


def _auto_device_bytes(machine: Machine) -> int:
    share = AUTO_CPU_SHARE if machine.device_is_host else 1.0
    return int(machine.device_memory_bytes * share)


def _configurations(problem: PlanningProblem, *, allow_sliced_head: bool) -> list[Configuration]:
    return list(
        enumerate_configurations(
            problem.profile,
            device_is_host=problem.machine.device_is_host,
            allow_sliced_head=allow_sliced_head,
            rounds_staging=problem.machine.host_pinning is HostPinning.ROUNDED,
        )
    )


def _as_plan(
    problem: PlanningProblem,
    devices: tuple[str, ...],
    arrangement: Arrangement,
    ledger: MemoryLedger,
    cost: SweepCost,
) -> PlacementPlan:
    configuration = arrangement.configuration
    units = visited_units(problem.profile, configuration.granularity)
    return PlacementPlan(
        model_name=problem.profile.name,
        dtype=problem.profile.dtype,
        device=devices[0],
        devices=devices,
        granularity=configuration.granularity,
        units=tuple(
            UnitPlacement(
                name=unit.name,
                block=unit.block,
                residency=residency,
                weight_bytes=unit.weight_bytes,
                read_bytes=unit.read_bytes,
            )
            for unit, residency in zip(units, arrangement.residencies, strict=True)
        ),
        num_slots=configuration.num_slots,
        slot_bytes=configuration.slot_bytes,
        num_staging=arrangement.num_staging,
        host_pinning=problem.machine.host_pinning,
        pageable_bytes_per_s=problem.machine.pageable_bytes_per_s,
        embedding=configuration.embedding,
        head_slices=configuration.head_slices,
        prefill_chunk_tokens=problem.workload.prefill_chunk_tokens,
        ledger=ledger,
        cost=cost,
    )


def _check(profile: ModelProfile, machine: Machine) -> None:
    if not profile.blocks:
        raise PlanError(f"{profile.name} has no blocks to place: give a model with decoder blocks")
    rates = (
        machine.disk_bytes_per_s,
        machine.copy_bytes_per_s,
        machine.memory_bytes_per_s,
        machine.flops_per_s,
    )
    if min(rates) <= 0:
        raise PlanError(
            f"every rate of {machine.name} must be above 0; got {rates} "
            "(disk, copy and memory in bytes/s, then flops/s)"
        )


def _within_device_budget(
    problem: PlanningProblem, configurations: list[Configuration], budget: MemoryBudget
) -> tuple[int, list[Configuration]]:
    """Return the device budget in bytes and the configurations that fit it."""
    machine = problem.machine
    least = min(configurations, key=problem.least_device_bytes)
    needed = problem.least_device_bytes(least)
    if budget.device == "min":
        budget_bytes = needed
    elif budget.device == "auto":
        budget_bytes = _auto_device_bytes(machine)
    else:
        budget_bytes = parse_size(budget.device)
    if needed > budget_bytes:
        raise _too_small(problem, least, needed, budget_bytes)
    return budget_bytes, [
        configuration
        for configuration in configurations
        if problem.least_device_bytes(configuration) <= budget_bytes
    ]


def _resident_if_it_fits(configurations: list[Configuration]) -> list[Configuration]:
    """Keep only the fully resident configuration if it fits: nothing is faster than moving no weights."""
    resident = [
        configuration
        for configuration in configurations
        if not configuration.num_slots and configuration.embedding in (None, Residency.DEVICE)
    ]
    return resident[:1] or configurations


def _too_small(
    problem: PlanningProblem, least: Configuration, needed_bytes: int, budget_bytes: int
) -> BudgetTooSmallError:
    lines = sorted(problem.least_device_lines(least), key=lambda line: -line.num_bytes)
    uses = [f"{line.purpose} {format_bytes(line.num_bytes)}" for line in lines]
    replicas, workload = problem.replicas_per_device, problem.workload
    where = problem.machine.device + (f", shared by {replicas} replicas," if replicas > 1 else "")
    return BudgetTooSmallError(
        f"a device budget of {format_bytes(budget_bytes)} on {where} cannot hold {problem.profile.name}: "
        f"it needs at least {', '.join(uses)}; "
        f"give at least {format_bytes(needed_bytes)} ({needed_bytes} bytes), or shorten the workload "
        f"(prompt_tokens {workload.prompt_tokens}, new_tokens {workload.new_tokens}, "
        f"batch_size {workload.batch_size})"
        f"{_advice_to_keep_less(problem)}"
        f"{_advice_to_slice(problem, needed_bytes, problem.least_device_bytes)}",
        needed_bytes=needed_bytes,
        budget_bytes=budget_bytes,
    )


def _advice_to_keep_less(problem: PlanningProblem) -> str:
    if not problem.prefix_bytes:
        return ""
    return f", or reserve less for the prefix cache (prefix_cache {format_bytes(problem.prefix_bytes)})"


def _advice_to_slice(
    problem: PlanningProblem,
    needed_bytes: int,
    least_bytes: Callable[[Configuration], int],
    device_budget_bytes: int | None = None,
) -> str:
    """Return what a head in slices would need, if that is less than `needed_bytes`; empty otherwise.

    Args:
        problem: the search that found no plan.
        needed_bytes: the least that works without slices.
        least_bytes: returns what one configuration needs.
        device_budget_bytes: what the device has; None considers every configuration.
    """
    least = min(
        least_bytes(configuration)
        for configuration in _configurations(problem, allow_sliced_head=True)
        if device_budget_bytes is None or problem.least_device_bytes(configuration) <= device_budget_bytes
    )
    if problem.allow_sliced_head or least >= needed_bytes:
        return ""
    return (
        f"; allow_sliced_head=True (--allow-sliced-head) needs only {format_bytes(least)} ({least} bytes), "
        "but results may differ in the last bit"
    )


def _host_budget_bytes(search: Search, configurations: Sequence[Configuration], budget: MemoryBudget) -> int:
    """Return the host budget in bytes: 0 on a CPU device, where the device budget covers host memory."""
    machine = search.problem.machine
    if machine.device_is_host:
        return 0
    needed = min(search.least_host_bytes(configuration) for configuration in configurations)
    if budget.host == "min":
        return needed
    budget_bytes = (
        int(machine.host_memory_bytes * AUTO_HOST_SHARE) if budget.host == "auto" else parse_size(budget.host)
    )
    if needed > budget_bytes:
        uses = "read buffers, and weights that stay in host memory or pass through it,"
        if search.problem.prefix_bytes:
            uses += f" and the prefix cache of {format_bytes(search.problem.prefix_bytes)}"
        raise BudgetTooSmallError(
            f"a host budget of {format_bytes(budget_bytes)} cannot stream {search.problem.profile.name} "
            f"with a device budget of {format_bytes(search.device_budget_bytes)}: {uses} "
            f"need {format_bytes(needed)}; "
            f"give at least {format_bytes(needed)} ({needed} bytes) of host memory, or more device memory"
            f"{_advice_to_keep_less(search.problem)}"
            + _advice_to_slice(search.problem, needed, search.least_host_bytes, search.device_budget_bytes),
            needed_bytes=needed,
            budget_bytes=budget_bytes,
            where="host",
        )
    return budget_bytes
