"""What drafts take and what they are worth, as numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

import layerstream as ls
from layerstream.planning.drafting import CAST_WEIGHTS, expected_tokens, forecast_draft, own_copy_needs
from layerstream.spec.options import OwnCopy
from layerstream.spec.plans import SweepCost
from layerstream.spec.profiles import LinearShape
from layerstream.spec.sizes import GIB
from layerstream.spec.speculation import DraftNeeds

from .shapes import llama_70b

MACHINE = ls.Machine(
    device="cuda:0",
    device_memory_bytes=16 * GIB,
    host_memory_bytes=32 * GIB,
    disk_bytes_per_s=7e9,
    copy_bytes_per_s=25e9,
    memory_bytes_per_s=700e9,
    flops_per_s=5e13,
)
COST = SweepCost(
    read_bytes=0,
    copy_bytes=0,
    read_s=1.0,
    copy_s=0.0,
    compute_s=0.01,
    sweep_s=1.0,
    prefill_s=1.0,
    limited_by="disk",
)
SHAPES = (
    LinearShape(rows=8192, columns=8192, count=160),
    LinearShape(rows=1024, columns=8192, count=160),
    LinearShape(rows=28672, columns=8192, count=160),
    LinearShape(rows=8192, columns=28672, count=80),
)


def test_a_free_draft_is_as_deep_as_verification_is_free() -> None:
    draft = DraftNeeds(name="free", acceptance=0.99)
    forecast = forecast_draft(draft, COST, MACHINE)
    assert forecast.drafted == 64
    assert forecast.tokens_per_sweep == pytest.approx(expected_tokens(0.99, 64))
    assert forecast.token_s == pytest.approx(1.0 / forecast.tokens_per_sweep)
    costly = forecast_draft(draft, replace(COST, compute_s=0.1), MACHINE)
    assert costly.drafted == 9  # ten forwards of 0.1 s take as long as the reading


def test_an_own_copy_takes_half_or_a_quarter_of_the_linear_layers() -> None:
    profile = replace(llama_70b(), linears=SHAPES)
    workload = ls.Workload(prompt_tokens=65, new_tokens=128)
    cpu = replace(MACHINE, device="cpu")
    int8, nf4 = (own_copy_needs(kind, profile, workload, cpu) for kind in OwnCopy)
    linear = sum(shape.rows * shape.columns * shape.count for shape in SHAPES)
    pieces = 4 * CAST_WEIGHTS  # on a CPU, weights are cast piece by piece to read a prompt
    assert int8.num_bytes - pieces - nf4.num_bytes == pytest.approx(linear * (1 - 0.5625), rel=0.01)
    assert linear < int8.num_bytes < 1.1 * linear
    assert int8.token_bytes < int8.num_bytes
    cast = own_copy_needs(OwnCopy.INT8, profile, workload, MACHINE)  # off the CPU, whole weights are cast
    assert cast.num_bytes == int8.num_bytes - pieces + 2 * 28672 * 8192
    assert cast.token_bytes > 4 * linear


def test_the_fastest_draft_that_fits_is_chosen() -> None:
    profile = replace(llama_70b(), linears=SHAPES)
    small = ls.simulate(profile, machine=MACHINE, draft="auto")
    assert small.draft == "lookup"
    assert small.draft_forecast is not None
    assert small.draft_forecast.token_s < small.draft_forecast.plain_token_s
    large = ls.simulate(profile, machine=replace(MACHINE, device_memory_bytes=90 * GIB), draft="auto")
    assert large.draft == "int8"


def test_no_draft_wins_where_computing_takes_longer_than_reading() -> None:
    machine = replace(MACHINE, disk_bytes_per_s=1e12, copy_bytes_per_s=1e12, memory_bytes_per_s=1e11)
    plan = ls.simulate(replace(llama_70b(), linears=SHAPES), machine=machine, draft="auto")
    assert plan.draft == ""
    assert "int8 does not fit the budget" in plan.draft_refusal
    assert "lookup would take" in plan.draft_refusal
    assert plan.draft_refusal in plan.explain()


def test_an_assumed_acceptance_is_used_and_named() -> None:
    profile = llama_70b()
    plan = ls.simulate(profile, machine=MACHINE, draft="lookup", draft_acceptance=0.9)
    assert plan.draft_forecast is not None
    assert plan.draft_forecast.acceptance == 0.9
    assert "a chance of 90%" in plan.explain()
    assert ls.PlacementPlan.from_dict(plan.to_dict()) == plan


def test_another_model_cannot_be_simulated() -> None:
    with pytest.raises(ls.PlanError, match=r"is another model; here it can be one of int8"):
        ls.simulate(llama_70b(), machine=MACHINE, draft="some/model")
    with pytest.raises(ls.PlanError, match="a chance from 0 to 1"):
        ls.simulate(llama_70b(), machine=MACHINE, draft="lookup", draft_acceptance=2)


def test_a_model_that_cannot_verify_says_why() -> None:
    profile = replace(llama_70b(), draft_refusal="it keeps a recurrent state")
    plan = ls.simulate(profile, machine=MACHINE, draft="int8")
    assert (plan.draft, plan.draft_refusal) == ("", "it keeps a recurrent state")
