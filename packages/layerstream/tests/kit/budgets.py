"""Budgets by name for tiny checkpoints: everything streamed, half and half, everything resident.

Test kit. Asks layerstream's planner what each would take, so that no size is written down here.
"""

from __future__ import annotations

from pathlib import Path

import layerstream as ls
from layerstream.spec.plans import Residency

WORKLOAD = ls.Workload(batch_size=6, prompt_tokens=12, new_tokens=8)
"""Enough for every computation of `kit.compare`: two prompts with three beams each."""
PLENTY = "4 GiB"
BUDGETS = ("min", "mixed", "resident")


def total_bytes(path: str | Path, dtype: str, budget: str | int, replicas: int = 1) -> int:
    """Return what the plan for `budget` takes on the CPU, in bytes."""
    plan = ls.plan(str(path), budget=budget, dtype=dtype, devices=["cpu"] * replicas, workload=WORKLOAD)
    return plan.ledger.device_bytes


def budget_bytes(path: str | Path, dtype: str, name: str, replicas: int = 1) -> str | int:
    """Return the budget called `name`: one of `BUDGETS`."""
    if name == "min":
        return "min"
    if name == "resident":
        return PLENTY
    return (total_bytes(path, dtype, "min", replicas) + total_bytes(path, dtype, PLENTY, replicas)) // 2


def load(path: str | Path, dtype: str, name: str, replicas: int = 1) -> ls.StreamedModel:
    """Load `path` on the CPU with `replicas` replicas under the budget called `name`, and check the plan."""
    budget = budget_bytes(path, dtype, name, replicas)
    streamed = ls.load(str(path), dtype=dtype, devices=["cpu"] * replicas, budget=budget, workload=WORKLOAD)
    plan = streamed.plan
    if name == "resident":
        assert plan.is_resident, f"{PLENTY} do not make {path} resident:\n{plan.explain()}"
    else:
        assert plan.count(Residency.DISK) > 0, f"nothing is streamed at {name}:\n{plan.explain()}"
    return streamed
