"""Plan for hardware you don't own: `simulate`, and what it shares with `plan` and `load`.

The planner is the simulator: the plan for a described machine is what `load` would do there. A saved
`ModelProfile` is planned without torch; a model by name is inspected first, and only that loads torch and
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import engine
from .errors import PlanError
from .planning.placement import plan_placement
from .spec.options import LoadOptions, MemoryBudget, Workload
from .spec.plans import PlacementPlan
from .spec.profiles import Machine, ModelProfile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def simulate(
    model: str | Path | PreTrainedConfig | ModelProfile,
    *,
    machine: Machine | Sequence[Machine],
    workload: Workload | None = None,
    budget: str | int | MemoryBudget = "auto",
    dtype: str | torch.dtype = "auto",
    allow_sliced_head: bool = False,
) -> PlacementPlan:
    """Return the plan for the given machine, which does not have to exist.

    Args:
        model: a directory, a Hub id, a transformers config, or a profile from `profile_model`, which needs
            no inspection.
        machine: the machine's figures; for several devices that share each read, one machine per device.
        workload: batch, prompt and answer lengths.
        budget: as for `plan`.
        dtype: the run dtype; a profile has its own.
        allow_sliced_head: as for `load`.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        PlanError: the profile has another dtype than the one requested, or the list of machines is empty.
    """
    machines = list_machines(machine)
    options = LoadOptions(
        budget=budget, dtype=dtype_name(dtype), workload=workload, allow_sliced_head=allow_sliced_head
    )
    if isinstance(model, ModelProfile):
        return plan_profile(_check_dtype(model, options.dtype), options, machines)
    spec = engine.inspect_any(model, options, on_host=machines[0].device_is_host)
    return plan_profile(spec.profile, options, machines)


def plan_profile(profile: ModelProfile, options: LoadOptions, machines: Sequence[Machine]) -> PlacementPlan:
    """Return the plan of `profile` on `machines`, one per device."""
    return plan_placement(
        profile=profile,
        budget=options.memory_budget,
        workload=options.workload or Workload(),
        machine=machines[0],
        other_machines=machines[1:],
        allow_sliced_head=options.allow_sliced_head,
    )


def list_machines(machine: Machine | Sequence[Machine]) -> list[Machine]:
    """Return one machine or several as a list.

    Raises:
        PlanError: there is none.
    """
    machines = [machine] if isinstance(machine, Machine) else list(machine)
    if not machines:
        raise PlanError("machine is an empty list: give one machine per device")
    return machines


def dtype_name(dtype: str | torch.dtype) -> str:
    """Return a dtype as text without the `torch.` prefix, or `"auto"`."""
    return str(dtype).removeprefix("torch.")


def _check_dtype(profile: ModelProfile, dtype: str) -> ModelProfile:
    if dtype not in ("auto", profile.dtype):
        raise PlanError(
            f"the profile of {profile.name} is for {profile.dtype}, but {dtype} was requested: "
            f"profile the model in {dtype}"
        )
    return profile
