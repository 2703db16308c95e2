"""A simulation needs only a profile."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

import layerstream as ls

SHAPE = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, vocab_size=256
)
CARD = ls.Machine(
    name="a card", device="cuda:0", device_memory_bytes=2**30, host_memory_bytes=2**32, measured=False
)


@pytest.mark.parametrize("budget", ["auto", "min", "2 MiB"])
def test_a_profile_gives_the_same_plan_as_its_config(budget: str) -> None:
    profile = ls.profile_model(SHAPE, dtype="float16", device="cuda")
    workload = ls.Workload(prompt_tokens=16, new_tokens=4)
    requested = ls.MemoryBudget(device=budget)
    plans = [
        ls.simulate(model, machine=CARD, budget=requested, dtype="float16", workload=workload)
        for model in (profile, SHAPE)
    ]
    assert plans[0] == plans[1]


def test_a_profile_of_another_dtype_is_refused() -> None:
    profile = ls.profile_model(SHAPE, dtype="float16")
    with pytest.raises(ls.PlanError, match="is for float16, but float32 was requested"):
        ls.simulate(profile, machine=CARD, dtype="float32")
