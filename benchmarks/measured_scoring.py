"""Run `score` once in a process of its own: its memory, its sweeps and the weights it read.

`bench_scoring.py` runs it: `python measured_scoring.py '<json>'` prints one line of JSON. The baseline is
what is resident before the model is opened.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from block_plans import load_planned, open_blocks, plan_blocks, settled_bytes
from measured_run import memory_status, reset_high_water

import layerstream as ls
from layerstream.machine import trim_malloc

TOKEN_KINDS = (ls.LedgerKind.KV_CACHE, ls.LedgerKind.KV_CACHE_GROWTH, ls.LedgerKind.ACTIVATIONS)
"""Kinds of ledger lines that depend on what is run."""


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Run `spec` in a child and return its figures.

    Args:
        spec: `model`, `requests`, `suffixes`, `prefix_tokens`, `suffix_tokens`, `room_for` (prompts at once).
    """
    command = [sys.executable, __file__, json.dumps(spec)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def random_requests(spec: dict[str, Any]) -> list[tuple[list[int], list[list[int]]]]:
    """Return random scoring requests; suffixes have 0.5 to 1.5 times `suffix_tokens`."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 500, (length,), generator=generator).tolist()

    lengths = [spec["suffix_tokens"] * (2 + place) // 4 for place in range(spec["suffixes"])]
    return [
        (ids(spec["prefix_tokens"]), [ids(max(1, length)) for length in lengths])
        for _ in range(spec["requests"])
    ]


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    directory, requests = Path(spec["model"]), random_requests(spec)
    workload = ls.Workload(batch_size=spec["room_for"], prompt_tokens=spec["prefix_tokens"], new_tokens=0)
    plan = plan_blocks(open_blocks(directory), 0, workload)
    # as `load` does; `load` itself would choose the units
    trim_malloc()
    reset_high_water()
    base = memory_status()["VmRSS"]
    with load_planned(directory, plan) as streamed:
        scoring = ls.plan_scores(streamed, requests)
        before = settled_bytes(streamed)
        streamed.reset_report()
        start_s = perf_counter()
        results = ls.score(streamed, requests)
        seconds = perf_counter() - start_s
        assert all(result.error is None for result in results)
        sweeps, read = streamed.report().sweeps, settled_bytes(streamed) - before
        peak = memory_status()["VmHWM"] - base
        before = settled_bytes(streamed)
        streamed.model(input_ids=torch.tensor([[5, 6, 7]]))
        one_sweep = settled_bytes(streamed) - before
    fixed = sum(
        line.num_bytes
        for line in plan.ledger.lines
        if line.where is ls.MemoryTier.DEVICE and line.kind not in TOKEN_KINDS
    )
    return {
        "seconds": seconds,
        "planned_sweeps": len(scoring.sweeps),
        "sweeps": sweeps,
        "read_bytes": read,
        "one_sweep_bytes": one_sweep,
        "peak_bytes": peak,
        "predicted_bytes": fixed + scoring.sweep_bytes,
        "sweep_bytes": {line.kind.value: line.num_bytes for line in scoring.lines},
        "fixed_bytes": fixed,
        "budget_bytes": plan.ledger.device_budget_bytes,
        "plan": f"{plan.explain()}\n{scoring.explain()}".replace(str(directory), "model"),
    }


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(sys.argv[1]))))
