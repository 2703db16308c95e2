"""Step `python_cost`: microseconds of the main thread for a forward, and for a streamed unit.

A model of 32 blocks so small that the interpreter's share shows. The clock is the thread's own CPU time
around one forward, with the device idle before it: what is launched, not what is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from block_plans import load_planned, open_blocks
from common import interleave, median, median_ratio
from random_llama import MANY_BLOCKS, write_llama

import layerstream as ls

from .child import FAKE, Case, Child
from .lines import Found, Row
from .llama7b import load_plain
from .sweeps import GIB, streamed_units

WORKLOAD = ls.Workload(prompt_tokens=16, new_tokens=64)
SIZES = (64, 256)
FORWARDS, ROUNDS = 8, 9
RESIDENT_TARGET, UNIT_TARGET_US = 1.03, 150.0


def cases(child: Child) -> Iterator[Case]:
    """Yield one case for each hidden size."""
    for size in SIZES[:1] if child.is_quick else SIZES:
        yield f"hidden size {size}", 1.0, lambda size=size: measure(child, size)


def measure(child: Child, hidden_size: int) -> Found:
    """Take turns between the plain model, the resident one and the streamed ones."""
    torch.set_num_threads(1)
    path = child.work / f"many-blocks-{hidden_size}"
    if not path.exists():
        shape = replace(MANY_BLOCKS, hidden_size=hidden_size, intermediate_size=hidden_size * 5 // 2)
        write_llama(path, shape, repeats=True)
    with ExitStack() as stack:
        models: dict[str, Any] = {"plain": load_plain(path, child.torch_device)}
        models["resident"] = stack.enter_context(child.load(path, ls.MemoryBudget(), WORKLOAD))
        plans = block_plans(child, path)
        for name, plan in plans.items():
            models[name] = stack.enter_context(load_planned(path, plan, child.runtime()))
        rounds = 2 if child.is_quick else ROUNDS
        us = interleave(
            {name: lambda model=model: forward_us(child, model) for name, model in models.items()},
            rounds=rounds,
        )
        units = {name: streamed_units(plan) for name, plan in plans.items()}
    return Found(rows=tuple(rows(child, hidden_size, us, units)), figures={"us": us, "streamed_units": units})


def rows(child: Child, hidden_size: int, us: dict[str, list[float]], units: dict[str, int]) -> Iterator[Row]:
    """Yield the plain figure, the resident ratio and the cost of a streamed unit."""
    title = f"Python, hidden size {hidden_size}"
    clock = "CPU time of the main thread, the median of interleaved rounds"
    yield Row(what=f"{title}: plain forward", found=f"{median(us['plain']):.0f} µs", note=clock)
    ratio = median_ratio(us["resident"], us["plain"])
    note = f"{median(us['resident']):.0f} µs a forward, {clock}"
    # the fake device computes on this thread; a CPU's figures count, small as the model is
    is_judged = child.device != FAKE and not child.is_quick
    yield child.at_most(f"{title}: resident / plain", ratio, RESIDENT_TARGET, note, is_judged=is_judged)
    for name in ("from disk", "from host"):
        if name not in us:
            continue
        more = [(ours - plain) / units[name] for ours, plain in zip(us[name], us["plain"], strict=True)]
        note = (
            f"{median(us[name]):.0f} µs a forward of {units[name]} streamed units; more than plain, by units"
        )
        row = child.at_most(
            f"{title}: a unit {name}", median(more), UNIT_TARGET_US, note, is_judged=is_judged
        )
        yield replace(row, found=f"{median(more):.1f} µs", target=f"at most {UNIT_TARGET_US:g} µs")


@torch.no_grad()
def forward_us(child: Child, model: Any) -> float:
    """Return the median microseconds of the main thread for one decode forward."""
    prompt = torch.arange(3, 19, device=model.device).reshape(1, -1)
    cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = torch.full((1, 1), 5, device=model.device)
    spent_s = []
    for _ in range(FORWARDS):
        child.synchronize()
        start_s = time.thread_time()
        model(input_ids=token, past_key_values=cache, use_cache=True)
        spent_s.append(time.thread_time() - start_s)
    child.synchronize()
    return median(spent_s[2:]) * 1e6


def block_plans(child: Child, path: Path) -> dict[str, ls.PlacementPlan]:
    """Return plans that stream every block, whole, so that figures of two days compare."""
    profile = open_blocks(path, on_host=not child.has_two_tiers).profile
    machine = child.machine(profile.dtype)
    hosts: dict[str, int | str] = {"from disk": "min"}
    if child.has_two_tiers:
        hosts["from host"] = 4 * GIB
    return {
        name: ls.simulate(
            profile,
            machine=machine,
            budget=ls.MemoryBudget(device="min", host=host),
            workload=WORKLOAD,
        )
        for name, host in hosts.items()
    }
