"""Plan for hardware you don't own: `simulate`, and what it shares with `plan` and `load`.

The planner is the simulator: the plan for a described machine is what `load` would do there. A saved
`ModelProfile` is planned without torch; a model by name is inspected first, and only that loads torch and
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import engine
from .errors import BudgetTooSmallError, PlanError
from .planning.drafting import (
    MOST_DRAFTED,
    drafts_without_another_model,
    lookup_needs,
    own_copy_needs,
)
from .planning.placement import plan_placement
from .spec.options import AUTO_DRAFT, LOOKUP, OWN_DRAFTS, LoadOptions, MemoryBudget, OwnCopy, Workload
from .spec.plans import PlacementPlan
from .spec.profiles import Machine, ModelProfile
from .spec.sizes import format_seconds
from .spec.speculation import DraftNeeds

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
    draft: str | None = None,
    draft_acceptance: float | None = None,
    prefix_cache: int | str = 0,
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
        draft: as for `load`, but no other model.
        draft_acceptance: as for `plan`.
        prefix_cache: as for `load`.

    Raises:
        BudgetTooSmallError: with `needed_bytes`.
        PlanError: the profile has another dtype than the one requested, the list of machines is empty, or the
            draft is another model.
    """
    machines = list_machines(machine)
    options = LoadOptions(
        budget=budget,
        dtype=dtype_name(dtype),
        workload=workload,
        allow_sliced_head=allow_sliced_head,
        draft=draft,
        draft_acceptance=draft_acceptance,
        prefix_cache=prefix_cache,
    )
    if isinstance(model, ModelProfile):
        profile = _check_dtype(model, options.dtype)
    else:
        profile = engine.inspect_any(model, options, on_host=machines[0].device_is_host).profile
    return plan_with_own_draft(profile, options, machines)


def plan_with_own_draft(
    profile: ModelProfile, options: LoadOptions, machines: Sequence[Machine]
) -> PlacementPlan:
    """Return the plan of `profile`, with a draft that needs no other model, if `options` name one.

    Raises:
        PlanError: the draft is another model.
    """
    options = with_room_for_drafts(options)
    return plan_profile(profile, options, machines, own_draft_needs(profile, options, machines))


def with_room_for_drafts(options: LoadOptions) -> LoadOptions:
    """Return `options` with a workload in which a sweep may verify as many tokens as are ever drafted."""
    if options.draft is None:
        return options
    workload = options.workload or Workload()
    workload = replace(
        workload,
        prompt_tokens=max(workload.prompt_tokens, MOST_DRAFTED + 1),
        new_tokens=workload.new_tokens + MOST_DRAFTED,
    )
    return replace(options, workload=workload)


def own_draft_needs(
    profile: ModelProfile, options: LoadOptions, machines: Sequence[Machine]
) -> DraftNeeds | None:
    """Return what the draft of `options` takes; None without a draft.

    Raises:
        PlanError: the draft is another model, whose sizes are not known here.
    """
    if options.draft is None:
        return None
    name, workload = str(options.draft), options.workload or Workload()
    if profile.draft_refusal:
        return DraftNeeds(name=name, refusal=profile.draft_refusal)
    if name == AUTO_DRAFT:
        return _fastest_draft(profile, options, machines)
    if name not in OWN_DRAFTS:
        raise PlanError(f"draft={name!r} is another model; here it can be one of {', '.join(OWN_DRAFTS)}")
    if name == LOOKUP:
        needs = lookup_needs(profile, workload)
    else:
        needs = own_copy_needs(OwnCopy(name), profile, workload, machines[0])
    return as_asked(needs, options)


def as_asked(needs: DraftNeeds, options: LoadOptions) -> DraftNeeds:
    """Return `needs` with what `options` name: the acceptance and the number of tokens."""
    acceptance = needs.acceptance if options.draft_acceptance is None else options.draft_acceptance
    return replace(needs, acceptance=acceptance, tokens=options.draft_tokens)


def _fastest_draft(profile: ModelProfile, options: LoadOptions, machines: Sequence[Machine]) -> DraftNeeds:
    """Return the draft with which a token takes the least time by the plan, or why there is none."""
    plain_s = plan_profile(profile, options, machines).cost.sweep_s
    found: list[tuple[float, DraftNeeds]] = []
    reasons = []
    for name in drafts_without_another_model(machines[0]):
        needs = own_draft_needs(profile, replace(options, draft=name), machines)
        assert needs is not None
        try:
            forecast = plan_profile(profile, options, machines, needs).draft_forecast
        except BudgetTooSmallError:
            reasons.append(f"{name} does not fit the budget")
            continue
        assert forecast is not None
        if forecast.token_s < plain_s:
            found.append((forecast.token_s, needs))
        else:
            reasons.append(
                f"{name} would take {format_seconds(forecast.token_s)} per token instead of "
                f"{format_seconds(plain_s)}"
            )
    if found:
        return min(found, key=lambda one: one[0])[1]
    return DraftNeeds(name=AUTO_DRAFT, refusal="; ".join(reasons))


def plan_profile(
    profile: ModelProfile,
    options: LoadOptions,
    machines: Sequence[Machine],
    draft: DraftNeeds | None = None,
) -> PlacementPlan:
    """Return the plan of `profile` on `machines`, one per device, with what a draft takes on the first."""
    return plan_placement(
        profile=profile,
        budget=options.memory_budget,
        workload=options.workload or Workload(),
        machine=machines[0],
        other_machines=machines[1:],
        allow_sliced_head=options.allow_sliced_head,
        draft=draft,
        prefix_bytes=options.prefix_bytes,
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
