"""layerstream, on the CPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
from block_plans import resident_blocks, resident_share
from cold_files import drop_page_cache

import layerstream as ls
from layerstream.engine.inspect import inspect_model
from layerstream.machine import describe_machine
from layerstream.planning.placement import plan_placement
from peers.forward_steps import ForwardSteps
from peers.protocol import LoadSpec, Prompts

SEARCH_STEP_SHARE = 0.25
LEFT_BYTES = 48 * 1024**2
"""Of a memory limit, what is left for the allocator and for pages of libraries that are touched later."""


class Layerstream:
    """A streamed model at the least budget that reads as few bytes as was asked."""

    def load(self, spec: LoadSpec) -> dict[str, Any]:
        """Find the budget and load the model."""
        self._directory = Path(spec.model)
        workload = ls.Workload(
            batch_size=spec.batch_size, prompt_tokens=spec.prompt_tokens, new_tokens=spec.new_tokens
        )
        self._closing = ExitStack()
        load = ls.load  # a name is imported when it is first used
        if spec.keep == "limit":
            budget_bytes = spec.limit_bytes - psutil.Process().memory_info().rss - LEFT_BYTES
        else:
            share = 1.0 if spec.keep == "nothing" else 0.5
            budget_bytes = least_budget(self._directory, int(share * spec.block_bytes), workload)
        self._model = self._closing.enter_context(
            load(self._directory, device="cpu", budget=budget_bytes, workload=workload)
        )
        self._steps = ForwardSteps(self._model, self._model.config)
        plan = self._model.plan
        return {
            "plan": plan.explain().replace(str(self._directory), "model"),
            "sweep_bytes": plan.cost.read_bytes,
            "resident_blocks": resident_blocks(plan),
            "resident_share": resident_share(plan),
        }

    def start(self, prompts: Prompts) -> list[int]:
        """Run the prompts."""
        return self._steps.start(prompts)

    def step(self, tokens: list[int]) -> list[int]:
        """Append one token to every sequence."""
        return self._steps.step(tokens)

    def generate_many(self, prompts: Prompts, new_tokens: int) -> Prompts:
        """Answer all prompts in shared sweeps."""
        requests = [ls.GenerationRequest(prompt=each, max_new_tokens=new_tokens) for each in prompts]
        return [list(answer.tokens) for answer in ls.generate_many(self._model, requests)]

    def drop_caches(self) -> None:
        """Drop the checkpoint from the page cache, which layerstream does not use."""
        drop_page_cache(self._directory)


def least_budget(directory: Path, most_bytes: int, workload: ls.Workload) -> int:
    """Return the least budget with which a sweep reads at most `most_bytes`, to a quarter of a block."""
    profile = inspect_model(directory, on_host=True).profile
    machine = describe_machine(torch.device("cpu"))

    def plan(budget: int | str) -> ls.PlacementPlan:
        requested = ls.MemoryBudget(device=budget)
        return plan_placement(profile=profile, budget=requested, workload=workload, machine=machine)

    step_bytes = int(SEARCH_STEP_SHARE * max(unit.slot_bytes for unit in profile.blocks))
    budget_bytes = plan("min").ledger.device_bytes
    while plan(budget_bytes).cost.read_bytes > most_bytes:
        budget_bytes += step_bytes
    return budget_bytes
