"""Step `llama7b`: a 7B shape from host memory, resident, from disk, and half from each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from common import interleave, median, median_ratio
from forwards import decode_seconds
from transformers import AutoModelForCausalLM

import layerstream as ls

from .child import Case, Child, NotHereError
from .lines import Found
from .models import SEVEN_B, ensure, shape_of
from .sweeps import WORKLOAD, device_bytes, facts_of, host_bytes, measure_sweeps

RESIDENT_TARGET = 1.03
DECODE_STEPS = 16


def cases(child: Child) -> Iterator[Case]:
    """Yield the four ways to hold the model, the most telling first."""
    yield "from host", 8.0 if child.is_accelerator else 1.0, lambda: streamed(child, "from host", 1.0)
    yield "resident", 8.0 if child.is_accelerator else 1.0, lambda: resident(child)
    yield "from disk", 10.0 if child.is_accelerator else 1.0, lambda: streamed(child, "from disk", 0.0)
    yield "half and half", 8.0 if child.is_accelerator else 1.0, lambda: streamed(child, "half and half", 0.5)


def streamed(child: Child, name: str, host_share: float) -> Found:
    """Measure one sweep with `host_share` of what is streamed in host memory."""
    if host_share and not child.has_two_tiers:
        raise NotHereError("host and device memory are one on a CPU")
    path = ensure(child, SEVEN_B)
    device = device_bytes(child, path, WORKLOAD)
    host: int | str = "min"
    if host_share:
        host = host_bytes(child, path, device, WORKLOAD, host_share)
    budget = ls.MemoryBudget(device=device, host=host)
    check_places(child.plan(path, budget, WORKLOAD), host_share)
    return measure_sweeps(
        child,
        path,
        budget,
        f"7B shape {name}: sweep / its bytes at the plain rate",
        steps=6 if host_share == 1.0 else 2,
    )


def check_places(plan: ls.PlacementPlan, host_share: float) -> None:
    """Refuse a case whose units are not where its name says."""
    on_disk, in_host = plan.count(ls.Residency.DISK), plan.count(ls.Residency.HOST)
    if host_share < 1.0 and not on_disk:
        raise NotHereError("the model is so small that all of it fits in the host memory that loading takes")
    assert in_host or not host_share, plan.explain()
    assert not (on_disk and host_share == 1.0), plan.explain()


def resident(child: Child) -> Found:
    """Decode with everything resident beside plain transformers, in turns."""
    path = ensure(child, SEVEN_B)
    plain = load_plain(path, child.torch_device)
    with child.load(path, ls.MemoryBudget(), WORKLOAD) as streamed_model:
        if not streamed_model.plan.is_resident:
            raise NotHereError("the device does not hold the model twice")
        models = {"plain": plain, "layerstream": streamed_model}
        decode_seconds(plain, batch_size=1, steps=DECODE_STEPS)
        round_s = 2 * (DECODE_STEPS + 2) * decode_seconds(plain, batch_size=1, steps=DECODE_STEPS)
        rounds = child.rounds(round_s, most=9)
        seconds = interleave(
            {
                name: lambda model=model: decode_seconds(model, batch_size=1, steps=DECODE_STEPS)
                for name, model in models.items()
            },
            rounds=rounds,
        )
        figures = {"seconds": seconds, **facts_of(streamed_model.plan, streamed_model.report())}
    ratio = median_ratio(seconds["layerstream"], seconds["plain"])
    ours_ms, plain_ms = (median(seconds[name]) * 1e3 for name in ("layerstream", "plain"))
    note = (
        f"{ours_ms:.2f} ms against {plain_ms:.2f} ms a token, "
        f"{shape_of(child, SEVEN_B).num_blocks} blocks; median ratio of {rounds} interleaved rounds"
    )
    row = child.at_most("7B shape resident: time / plain transformers", ratio, RESIDENT_TARGET, note)
    return Found(rows=(row,), figures=figures)


def load_plain(path: Path, device: torch.device) -> torch.nn.Module:
    """Return plain transformers' model on the device."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(device).eval()
    return model
