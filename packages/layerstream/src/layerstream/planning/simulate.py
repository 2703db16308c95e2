"""Simulate the pipeline of reads, copies and computation, for hardware you own or not.

A recurrence over visits that wraps from each sweep into the next, as the stream does. The waits are:

1. A read waits for the previous read and for a buffer. That is a staging buffer, which is free once its last
   copy is done, or the slot itself where there are no staging buffers (CPU device).
2. A copy waits for its read, for the previous copy and for its slot, which is free once the last computation
   on it is done.
3. A computation waits for the previous one and for its unit's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..spec.plans import PlacementPlan, Residency
from ..spec.profiles import Machine, ModelProfile
from ..spec.timeline import Activity, Span
from .devices import group_devices
from .visit_times import Forward, VisitTimes, visit_times


class Buffers(NamedTuple):
    """The buffers that bound the pipeline; no staging buffers where reads go straight to slots."""

    num_slots: int
    num_staging: int


class Visit(NamedTuple):
    """When the parts of one visit began and ended, in seconds; a part that was skipped has length 0."""

    sweep: int
    visit: int
    read_start_s: float
    read_end_s: float
    copy_start_s: float
    copy_end_s: float
    wait_start_s: float
    compute_start_s: float
    compute_end_s: float


def simulate_pipeline(
    times: VisitTimes, residencies: Sequence[Residency], buffers: Buffers, sweeps: int
) -> Iterator[Visit]:
    """Yield every visit of `sweeps` sweeps in order.

    Args:
        times: how long the visits take.
        residencies: where each unit lives, by unit index.
        buffers: how many slots and staging buffers there are; at least one slot unless all units are on the
            device.
        sweeps: how many sweeps to simulate.
    """
    visits = list(
        zip(
            [residencies[unit] for unit in times.unit_index],
            times.read_s,
            times.host_s or (0.0,) * len(times.read_s),
            times.copy_s,
            times.compute_s,
            strict=True,
        )
    )
    slot_free = [0.0] * buffers.num_slots
    # without staging buffers a read waits for the slot, so both names refer to one list
    staging_free = [0.0] * buffers.num_staging if buffers.num_staging else slot_free
    reader_free = copier_free = now = 0.0
    slot = staging = -1
    for sweep in range(sweeps):
        for index, (residency, disk_s, host_s, copy_s, compute_s) in enumerate(visits):
            read_s = {Residency.DISK: disk_s, Residency.HOST: host_s}.get(residency, 0.0)
            is_staged = residency is Residency.DISK or read_s > 0
            wait_start, read_start, read_end, copy_start, copy_end = now, now, now, now, now
            if residency is not Residency.DEVICE:
                slot = (slot + 1) % buffers.num_slots
                read_start = read_end = 0.0
                if is_staged:
                    staging = (staging + 1) % len(staging_free)
                    read_start = max(reader_free, staging_free[staging if buffers.num_staging else slot])
                    reader_free = read_end = read_start + read_s
                copy_start = max(read_end, copier_free, slot_free[slot])
                copier_free = copy_end = copy_start + copy_s
                if is_staged:
                    staging_free[staging if buffers.num_staging else slot] = copy_end
            if residency is Residency.HOST:
                read_start = read_end  # nothing is read from the disk
            start = max(now, copy_end)
            now = start + compute_s
            if residency is not Residency.DEVICE:
                slot_free[slot] = now
            yield Visit(sweep, index, read_start, read_end, copy_start, copy_end, wait_start, start, now)


def sweep_ends(
    times: VisitTimes, residencies: Sequence[Residency], buffers: Buffers, sweeps: int
) -> list[float]:
    """Return when each of `sweeps` sweeps ends, in seconds from a cold start."""
    last = len(times.unit_index) - 1
    return [
        visit.compute_end_s
        for visit in simulate_pipeline(times, residencies, buffers, sweeps)
        if visit.visit == last
    ]


def simulate_spans(
    plan: PlacementPlan,
    profile: ModelProfile,
    machine: Machine,
    tokens: int,
    sweeps: int,
    *,
    batch_size: int = 1,
) -> tuple[Span, ...]:
    """Return the timeline that a plan would produce on a machine, in seconds from 0.

    With several devices, it is the timeline of the first.

    Args:
        plan: where everything lives.
        profile: the model that was planned.
        machine: the machine; it need not exist here.
        tokens: tokens of each sequence in every forward: the prompt's length, or 1.
        sweeps: how many forwards.
        batch_size: sequences in one forward.

    Returns:
        The spans of reads, copies, waits and computation, in visiting order.
    """
    forward = Forward(
        batch_size=batch_size,
        tokens=tokens,
        granularity=plan.granularity,
        head_slices=plan.head_slices,
        embedding=plan.embedding,
    )
    # replicas on one device share its rates
    machine = group_devices([replace(machine, device=name) for name in plan.devices]).machine
    times = visit_times(profile, machine, forward)
    residencies = [unit.residency for unit in plan.units]
    buffers = Buffers(plan.num_slots, plan.num_staging)
    spans: list[Span] = []
    for visit in simulate_pipeline(times, residencies, buffers, sweeps):
        unit = times.unit_index[visit.visit]
        spans += _spans_of(visit, plan.units[unit].name, unit, times)
    return tuple(spans)


def _spans_of(visit: Visit, name: str, unit_index: int, times: VisitTimes) -> Iterator[Span]:
    parts = (
        (Activity.READ, visit.read_start_s, visit.read_end_s, times.read_bytes[visit.visit]),
        (Activity.COPY, visit.copy_start_s, visit.copy_end_s, times.copy_bytes[visit.visit]),
        (Activity.WAIT, visit.wait_start_s, visit.compute_start_s, 0),
        (Activity.COMPUTE, visit.compute_start_s, visit.compute_end_s, 0),
    )
    for activity, start, end, num_bytes in parts:
        if end > start:
            yield Span(
                activity=activity,
                unit=name,
                unit_index=unit_index,
                sweep=visit.sweep,
                start_s=start,
                end_s=end,
                num_bytes=num_bytes,
            )
