"""Streamed models with whole blocks as units and a chosen number of them resident.

The planner takes whatever it predicts to be fastest; a curve over residency wants the unit size held still. So the profile is given
to the same planner without its finer units, and the budget is what the ledger says that so many resident blocks need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

import layerstream as ls
from layerstream.checkpoint.reader import DiskReader, ReadTicket
from layerstream.engine.build import build
from layerstream.engine.inspect import ModelSpec, inspect_model
from layerstream.machine import describe_machine
from layerstream.planning.placement import plan_placement
from layerstream.spec.plans import Residency
from layerstream.streaming.buffers import HostBuffer
from layerstream.streaming.runtime import TorchRuntime
from layerstream.streaming.sources import UnitSource


def open_blocks(directory: Path) -> ModelSpec:
    """Open a checkpoint with whole blocks as its only units."""
    spec = inspect_model(directory)
    return replace(spec, profile=replace(spec.profile, parts=(), layers=()))


def plan_blocks(spec: ModelSpec, num_resident: int, workload: ls.Workload) -> ls.PlacementPlan:
    """Return the plan with `num_resident` decoder blocks on the device, the rest streamed through two slots.

    The budget that gives it is searched for: one slot's room at a time from the least that works.
    """
    machine = describe_machine(torch.device("cpu"))

    def plan(budget: int | str) -> ls.PlacementPlan:
        requested = ls.MemoryBudget(device=budget)
        return plan_placement(profile=spec.profile, budget=requested, workload=workload, machine=machine)

    least = plan("min")
    block_bytes = max(unit.slot_bytes for unit in spec.profile.blocks)
    budget_bytes = least.ledger.device_bytes
    found = least
    while resident_blocks(found) < num_resident:
        budget_bytes += block_bytes // 4
        found = plan(budget_bytes)
    return found


def resident_blocks(plan: ls.PlacementPlan) -> int:
    """Return how many decoder blocks stay on the device."""
    return sum(unit.block is not None and unit.residency is Residency.DEVICE for unit in plan.units)


def resident_share(plan: ls.PlacementPlan) -> float:
    """Return the share of the units' bytes that stays on the device."""
    total = sum(unit.weight_bytes for unit in plan.units)
    return sum(unit.weight_bytes for unit in plan.units if unit.residency is Residency.DEVICE) / total


@contextmanager
def load_planned(directory: Path, plan: ls.PlacementPlan) -> Iterator[ls.StreamedModel]:
    """Yield the model of `directory` as `plan` has it."""
    runtime = TorchRuntime(torch.device("cpu"))
    with ls.StreamedModel(build(open_blocks(directory), plan, [runtime]), baseline_bytes=0) as streamed:
        yield streamed


class BareReads:
    """The reads of a plan's sweep by the same reader, through as many buffers of the same size, with nothing computed."""

    def __init__(self, directory: Path, plan: ls.PlacementPlan) -> None:
        spec = open_blocks(directory)
        recipes = {unit.name: unit for unit in spec.units.streamed[plan.granularity]}
        moving = [
            recipes[p.name] for p in plan.units if p.name in recipes and p.residency is not Residency.DEVICE
        ]
        head = spec.units.head
        if head is not None and any(
            p.name == head.name and p.residency is not Residency.DEVICE for p in plan.units
        ):
            moving += spec.units.head_slices(plan.head_slices)
        self.sources = [UnitSource(recipe) for recipe in moving]
        self.read_bytes = sum(source.read_bytes for source in self.sources)
        self._closing = ExitStack()
        self._reader = self._closing.enter_context(DiskReader())
        size = max(source.layout.host_bytes for source in self.sources)
        self._buffers = [HostBuffer.allocate(size) for _ in range(plan.num_slots)]

    def read(self, sweeps: int) -> None:
        """Read every unit `sweeps` times in order, each buffer again as soon as its last unit is there."""
        under_way: list[ReadTicket] = []
        for number, source in enumerate(self.sources * sweeps):
            if len(under_way) == len(self._buffers):
                under_way.pop(0).wait()
            under_way.append(self._reader.submit(source.requests(self._buffers[number % len(self._buffers)])))
        for ticket in under_way:
            ticket.wait()

    def close(self) -> None:
        """Stop the reader."""
        self._closing.close()
