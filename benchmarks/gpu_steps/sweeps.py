"""What the steps with a large model share: budgets, and one sweep against the bytes that it must move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from common import drop_page_cache, median
from forwards import PROMPT_TOKENS, decode_seconds

import layerstream as ls

from .child import Child, shown_bytes
from .lines import Found, Row
from .rates import cold_read_rate, plain_copy

WORKLOAD = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=40)
TARGET = 1.08
SETTLE_S = 0.3
"""In which a sweep's prefetch for the next one comes to rest, before anything plain is measured."""
GIB = 1024**3


def device_bytes(child: Child, path: Path, workload: ls.Workload) -> int:
    """Return a device budget that streams most of a model: the least, and a fifth of its weights."""
    least = child.plan(path, ls.MemoryBudget(device="min", host="min"), workload)
    return least.ledger.device_bytes + sum(unit.weight_bytes for unit in least.units) // 5


def host_bytes(child: Child, path: Path, device: int, workload: ls.Workload, share: float) -> int:
    """Return the host budget at which about `share` of what is streamed comes from host memory."""
    few, all_of_it = (
        child.plan(path, ls.MemoryBudget(device=device, host=host), workload).ledger.host_bytes
        for host in ("min", 64 * GIB if child.is_accelerator else 4 * GIB)
    )
    return int(few + (all_of_it - few) * share)


@dataclass(slots=True, kw_only=True)
class Rounds:
    """One sweep and the plain rates beside it, in turns."""

    sweep_s: list[float] = field(default_factory=list)
    copy_rate: list[float] = field(default_factory=list)
    read_rate: list[float] = field(default_factory=list)

    def limits_s(self, read_bytes: int, copy_bytes: int) -> list[float]:
        """Return for each round what its bytes take by the larger of reading and copying."""
        copies = [copy_bytes / rate for rate in self.copy_rate] or [0.0] * len(self.sweep_s)
        reads = [read_bytes / rate for rate in self.read_rate] or [0.0] * len(self.sweep_s)
        return [max(pair) for pair in zip(copies, reads, strict=True)]


def measure_sweeps(child: Child, path: Path, budget: ls.MemoryBudget, what: str, *, steps: int) -> Found:
    """Time sweeps of a streamed model against their bytes by the plain rates of the same minute.

    Args:
        child: the step.
        path: the model.
        budget: where its blocks live.
        what: the row's name.
        steps: sweeps in a row; the prefill and one more come before them.
    """
    with ExitStack() as stack:
        streamed = stack.enter_context(child.load(path, budget, WORKLOAD))
        assert not streamed.plan.is_resident, streamed.plan.explain()
        copy_rate = stack.enter_context(plain_copy(child)) if child.has_two_tiers else None
        found = turns(child, path, streamed, copy_rate, steps)
        plan, report = streamed.plan, streamed.report()
    cost = plan.cost
    limits_s = found.limits_s(cost.read_bytes, cost.copy_bytes)
    moved = {"read": cost.read_bytes, "copied": cost.copy_bytes}
    ratio = median([sweep / limit for sweep, limit in zip(found.sweep_s, limits_s, strict=True)])
    note = (
        f"{median(found.sweep_s):.4f} s a sweep, {median(limits_s):.4f} s by its bytes: "
        f"{', '.join(f'{shown_bytes(size)} {how}' for how, size in moved.items() if size)}; "
        f"{places(plan)} of up to {shown_bytes(plan.slot_bytes)}, {plan.num_slots} slots; "
        f"median of {len(found.sweep_s)}"
    )
    if child.is_accelerator and report.copy_s:
        note += f"; copies at {report.bytes_copied / report.copy_s / 1e9:.2f} GB/s by the device's events"
    figures = {
        "sweep_s": found.sweep_s,
        "limit_s": limits_s,
        "copy_bytes_per_s": found.copy_rate,
        "read_bytes_per_s": found.read_rate,
        **facts_of(plan, report),
    }
    return Found(rows=(child.at_most(what, ratio, TARGET, note),), figures=figures)


def turns(
    child: Child, path: Path, streamed: ls.StreamedModel, copy_rate: Callable[[], float] | None, steps: int
) -> Rounds:
    """Take turns: plain reads, plain copies, sweeps; as many rounds as there is time for, five at most."""
    found = Rounds()
    # the first round is as cold as code can be
    total, number = 1, -1
    while number < total:
        start_s = perf_counter()
        if child.is_judged:
            sleep(SETTLE_S)
        drop_page_cache(path)
        read_rate = cold_read_rate(child, path, max(number, 0)) if streamed.plan.cost.read_bytes else None
        plain_rate = median([copy_rate() for _ in range(3)]) if copy_rate is not None else None
        sweep_s = decode_seconds(streamed, batch_size=1, steps=steps)
        number += 1
        is_slow = sweep_s > 1.0
        if number > 0 or is_slow:
            found.sweep_s.append(sweep_s)
            found.copy_rate += [] if plain_rate is None else [plain_rate]
            found.read_rate += [] if read_rate is None else [read_rate]
        if number == 0:
            most = 2 if is_slow else 5
            total = min(most, child.rounds(perf_counter() - start_s, most=most)) - (1 if is_slow else 0)
    return found


def streamed_units(plan: ls.PlacementPlan) -> int:
    """Return how many units move in every sweep."""
    return len(plan.units) - plan.count(ls.Residency.DEVICE)


def places(plan: ls.PlacementPlan) -> str:
    """Return how many units move, and from where, as text."""
    counts = {where: plan.count(where) for where in (ls.Residency.HOST, ls.Residency.DISK)}
    return " and ".join(f"{count} units from {where.value}" for where, count in counts.items() if count)


def facts_of(plan: ls.PlacementPlan, report: ls.StreamReport) -> dict[str, Any]:
    """Return what a later reader needs to know of a plan and its run."""
    return {
        "units": {residency.value: plan.count(residency) for residency in ls.Residency},
        "granularity": plan.granularity.value,
        "slots": plan.num_slots,
        "slot_bytes": plan.slot_bytes,
        "staging": plan.num_staging,
        "ledger": {f"{line.where.value} {line.kind.value}": line.num_bytes for line in plan.ledger.lines},
        "device_budget_bytes": plan.ledger.device_budget_bytes,
        "host_budget_bytes": plan.ledger.host_budget_bytes,
        "report": {**report.to_dict(), "model_name": Path(report.model_name).name},
    }


def ratio_row(what: str, ours_s: float, theirs_s: float) -> Row:
    """Return a row without a target: how many times faster than something else."""
    note = f"{ours_s:.4f} s against {theirs_s:.4f} s a token"
    return Row(what=what, found=f"{theirs_s / ours_s:.2f}x", note=note)
