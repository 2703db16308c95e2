"""Load streamed models with whole blocks as units and a chosen number of them resident.

The planner takes the unit size that it predicts to be fastest, but a curve over residency needs a constant
unit size. So the planner gets the profile without its finer units, and the budget is what the ledger says
that number of resident blocks needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import torch

import layerstream as ls
from layerstream.checkpoint.reader import DiskReader, ReadTicket
from layerstream.engine.build import build
from layerstream.engine.inspect import ModelSpec, inspect_model
from layerstream.machine import describe_machine
from layerstream.planning.placement import plan_placement
from layerstream.spec.plans import Residency
from layerstream.streaming.buffers import HostBuffer
from layerstream.streaming.runtime import DeviceRuntime, TorchRuntime
from layerstream.streaming.sources import UnitSource


def open_blocks(directory: Path, *, on_host: bool = True) -> ModelSpec:
    """Open a checkpoint with whole blocks as its only units, laid out for the CPU or for another device."""
    spec = inspect_model(directory, on_host=on_host)
    return replace(spec, profile=replace(spec.profile, parts=(), layers=()))


def plan_blocks(spec: ModelSpec, num_resident: int, workload: ls.Workload) -> ls.PlacementPlan:
    """Return the plan with `num_resident` decoder blocks on the device, the rest streamed through two slots.

    The budget is found by search: from the least that works, upwards in steps of a quarter of a block. The
    predicted times of a plan with residents are those of a slow disk.
    """
    machine = describe_machine(torch.device("cpu"))
    if num_resident:
        # where computing is the limit, the planner may give the memory to a third slot or the embedding
        machine = replace(machine, disk_bytes_per_s=1e6)

    def plan(budget: int | str) -> ls.PlacementPlan:
        requested = ls.MemoryBudget(device=budget)
        return plan_placement(profile=spec.profile, budget=requested, workload=workload, machine=machine)

    result = plan("min")
    block_bytes = max(unit.slot_bytes for unit in spec.profile.blocks)
    budget_bytes = result.ledger.device_bytes
    while resident_blocks(result) < num_resident:
        budget_bytes += block_bytes // 4
        result = plan(budget_bytes)
    return result


def resident_blocks(plan: ls.PlacementPlan) -> int:
    """Return how many decoder blocks stay on the device."""
    return sum(unit.block is not None and unit.residency is Residency.DEVICE for unit in plan.units)


def resident_share(plan: ls.PlacementPlan) -> float:
    """Return the share of the units' bytes that stays on the device."""
    total = sum(unit.weight_bytes for unit in plan.units)
    return sum(unit.weight_bytes for unit in plan.units if unit.residency is Residency.DEVICE) / total


@contextmanager
def load_planned(
    directory: Path, plan: ls.PlacementPlan, runtime: DeviceRuntime | None = None
) -> Iterator[ls.StreamedModel]:
    """Yield the model of `directory`, placed as `plan` says, on the CPU or on `runtime`'s device."""
    runtime = runtime or TorchRuntime(torch.device("cpu"))
    spec = open_blocks(directory, on_host=runtime.is_host)
    with ls.StreamedModel(build(spec, plan, [runtime]), baseline_bytes=0) as streamed:
        yield streamed


def settled_bytes(streamed: ls.StreamedModel) -> int:
    """Return the bytes of units read so far, once the prefetch has been idle for two seconds."""
    last_bytes, since_s = -1, monotonic()
    while monotonic() - since_s < 2.0:
        now_bytes = streamed.timeline.totals[ls.Activity.READ].num_bytes
        last_bytes, since_s = now_bytes, since_s if now_bytes == last_bytes else monotonic()
        sleep(0.05)
    return last_bytes


class BareReads:
    """The reads of one sweep: same reader, as many buffers of the same size, nothing computed."""

    def __init__(self, directory: Path, plan: ls.PlacementPlan) -> None:
        spec = open_blocks(directory)
        recipes = {unit.name: unit for unit in spec.units.streamed[plan.granularity]}
        moved = {unit.name for unit in plan.units if unit.residency is not Residency.DEVICE}
        streamed = [recipes[unit.name] for unit in plan.units if unit.name in recipes and unit.name in moved]
        head = spec.units.head
        if head is not None and head.name in moved:
            streamed += spec.units.head_slices(plan.head_slices)
        self.sources = [UnitSource(recipe) for recipe in streamed]
        self.read_bytes = sum(source.read_bytes for source in self.sources)
        self._closing = ExitStack()
        self._reader = self._closing.enter_context(DiskReader())
        size = max(source.layout.host_bytes for source in self.sources)
        self._buffers = [HostBuffer.allocate(size) for _ in range(plan.num_slots)]

    def read(self, sweeps: int) -> None:
        """Read every unit `sweeps` times in order; a buffer is reused as soon as its last unit was read."""
        pending: list[ReadTicket] = []
        for number, source in enumerate(self.sources * sweeps):
            if len(pending) == len(self._buffers):
                pending.pop(0).wait()
            pending.append(self._reader.submit(source.requests(self._buffers[number % len(self._buffers)])))
        for ticket in pending:
            ticket.wait()

    def close(self) -> None:
        """Stop the reader."""
        self._closing.close()
