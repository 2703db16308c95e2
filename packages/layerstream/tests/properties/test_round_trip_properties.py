"""Plans, profiles and machines survive the way through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstream.errors import PlanError
from layerstream.planning.placement import plan_placement
from layerstream.spec.options import MemoryBudget, Workload
from layerstream.spec.plans import PlacementPlan, SweepCost
from layerstream.spec.profiles import ActivationProfile, Machine, ModelProfile

from .strategies import MB, machines, models

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = ("read_s", "copy_s", "compute_s", "sweep_s", "prefill_s")
RATES = ("disk_bytes_per_s", "copy_bytes_per_s", "memory_bytes_per_s", "flops_per_s")
GROWTH = ("bytes_per_token", "bytes_per_token_squared", "cache_bytes_per_token", "window_bytes_per_token")

# `...` draws a field that has a default, too
any_plan = st.builds(PlacementPlan, cost=st.builds(SweepCost, **dict.fromkeys(SECONDS, FINITE)))
any_machine = st.builds(
    Machine, name=..., device=..., runtime_bytes=..., measured=..., **dict.fromkeys(RATES, FINITE)
)
any_profile = st.builds(
    ModelProfile,
    parts=...,
    layers=...,
    head=...,
    head_is_tied=...,
    activation=st.builds(
        ActivationProfile, window_tokens=..., state_bytes=..., **dict.fromkeys(GROWTH, FINITE)
    ),
)


@given(value=any_plan | any_profile | any_machine)
@settings(max_examples=150, deadline=None)
def test_every_value_survives_json(value: PlacementPlan | ModelProfile | Machine) -> None:
    data = json.loads(json.dumps(value.to_dict()))
    assert data["version"] == 1
    assert type(value).from_dict(data) == value


@given(model=models(), machine=machines, device=st.sampled_from(["min", 5000 * MB]))
@settings(max_examples=30, deadline=None)
def test_a_plan_from_a_restored_profile_and_machine_is_the_same_plan(
    model: ModelProfile, machine: Machine, device: int | str
) -> None:
    budget = MemoryBudget(device=device, host=5000 * MB)
    plans = [
        plan_placement(profile=profile, budget=budget, workload=Workload(), machine=where)
        for profile, where in (
            (model, machine),
            (ModelProfile.from_dict(model.to_dict()), Machine.from_dict(machine.to_dict())),
        )
    ]
    assert PlacementPlan.from_dict(json.loads(json.dumps(plans[0].to_dict()))) == plans[1]


@given(value=any_plan | any_profile | any_machine, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_missing_field_is_named(value: PlacementPlan | ModelProfile | Machine, data: st.DataObject) -> None:
    fields = value.to_dict()
    derived = {"version", *getattr(type(value), "DERIVED_KEYS", ())}
    name = data.draw(st.sampled_from([name for name in fields if name not in derived]))
    del fields[name]
    with pytest.raises(PlanError, match=rf"^{type(value).__name__}\.{name} is missing"):
        type(value).from_dict(fields)
