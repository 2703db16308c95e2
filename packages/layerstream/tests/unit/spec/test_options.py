"""What options refuse, and what they resolve to."""

from __future__ import annotations

from typing import Any

import pytest

from layerstream.errors import PlanError
from layerstream.spec.options import LoadOptions, MemoryBudget, Workload


@pytest.mark.parametrize("budget", ["auto", "min", "6 GiB", 2**30])
def test_a_plain_budget_is_the_device_budget(budget: int | str) -> None:
    assert LoadOptions(budget=budget).memory_budget == MemoryBudget(device=budget)


def test_a_memory_budget_is_kept() -> None:
    budget = MemoryBudget(device="min", host="1 GiB")
    assert LoadOptions(budget=budget).memory_budget is budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "many"}, "'many' is not a size"),
        ({"device": "cpu", "devices": ("cpu",)}, "were both given: name one device, or several"),
        ({"prefix_cache": "much"}, "'much' is not a size"),
        ({"prefix_cache": 1, "devices": ("cuda:0", "cuda:1")}, "prefix_cache=1 works on one device"),
        ({"devices": ()}, "devices takes a list of devices"),
        ({"devices": "cpu"}, "devices takes a list of devices, such as .*; got 'cpu'"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        LoadOptions(**options)


@pytest.mark.parametrize(("size", "num_bytes"), [(0, 0), ("0", 0), (5, 5), ("1 MiB", 2**20)])
def test_the_prefix_cache_is_a_size_or_none(size: int | str, num_bytes: int) -> None:
    assert LoadOptions(prefix_cache=size).prefix_bytes == num_bytes


def test_several_devices_are_accepted() -> None:
    assert LoadOptions(devices=("cuda:0", "cuda:1")).devices == ("cuda:0", "cuda:1")


@pytest.mark.parametrize("size", ["6 parsecs", "", "-1 GiB", 0, "0 MB"])
def test_a_memory_budget_refuses_what_is_not_a_size(size: int | str) -> None:
    for budget in ({"device": size}, {"host": size}):
        with pytest.raises(PlanError, match="is not a size"):
            MemoryBudget(**budget)


@pytest.mark.parametrize(
    "counts", [{"batch_size": 0}, {"prompt_tokens": 0}, {"new_tokens": -1}, {"prefill_chunk_tokens": 0}]
)
def test_a_workload_refuses_impossible_counts(counts: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="got"):
        Workload(**counts)
