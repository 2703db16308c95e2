"""Compute how long single visits take: seconds of reading, copying and computing, from the machine's rates.

How visits overlap is the subject of `simulate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec.plans import Granularity, Residency
from ..spec.profiles import HostPinning, Machine, ModelProfile, UnitProfile
from .candidates import visited_units

UNIT_OVERHEAD_S = 300e-6
"""Python time of one visit: hooks, binding, reads and copies. Measured with units of a few kilobytes."""

ROW_READ_S = 25e-6
"""Time to read one embedding row from disk: a random read with several in flight."""

TRANSFER_EFFICIENCY = {Granularity.BLOCK: 1.0, Granularity.PART: 0.98, Granularity.LAYER: 0.95}
"""The share of the machine's transfer rates that units of each size reach. Assumed, not measured.

Small units leave the reader threads with short queues. The share also makes finer units pay for their
additional hooks.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitTimes:
    """The visits of one sweep as columns; a head in slices counts as several visits of one unit.

    Attributes:
        unit_index: the unit of each visit, in visiting order.
        read_bytes: bytes that the visit reads if its unit lives on disk.
        copy_bytes: bytes that it copies if its unit does not live on the device; 0 on a CPU device.
        read_s: seconds of that read.
        copy_s: seconds of that copy; 0 on a CPU device.
        host_s: seconds from host memory to a staging buffer; empty where units are copied from where they
            are.
        compute_s: seconds of the forward through the unit.
    """

    unit_index: tuple[int, ...]
    read_bytes: tuple[int, ...]
    copy_bytes: tuple[int, ...]
    read_s: tuple[float, ...]
    copy_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    host_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One forward of the model as numbers.

    Attributes:
        batch_size: sequences; the head computes the last position of each.
        tokens: tokens of each sequence.
        granularity: the size of a unit.
        head_slices: visits of a streamed head.
        embedding: where the input embedding's rows are looked up.
    """

    batch_size: int
    tokens: int
    granularity: Granularity
    head_slices: int = 1
    embedding: Residency | None = None


def visit_times(profile: ModelProfile, machine: Machine, forward: Forward) -> VisitTimes:
    """Return how long each visit of one sweep takes, for every residency that its unit might have."""
    visits: list[tuple[int, int, int, float]] = []
    for index, unit in enumerate(visited_units(profile, forward.granularity)):
        is_head = unit is profile.head
        slices = forward.head_slices if is_head else 1
        tokens = forward.batch_size * (1 if is_head else forward.tokens)
        compute_s = _compute_s(unit, machine, tokens) / slices + UNIT_OVERHEAD_S
        visits += [(index, unit.read_bytes // slices, unit.weight_bytes // slices, compute_s)] * slices
    indices, read_bytes, copy_bytes, compute = zip(*visits, strict=True)
    if machine.device_is_host:
        copy_bytes = (0,) * len(visits)
    efficiency = TRANSFER_EFFICIENCY[forward.granularity]
    lookup_s = _lookup_s(profile, machine, forward)
    host_s: tuple[float, ...] = ()
    if machine.host_pinning is not HostPinning.ALL:
        host_s = tuple(size / (machine.pageable_bytes_per_s * efficiency) for size in copy_bytes)
    return VisitTimes(
        unit_index=indices,
        read_bytes=read_bytes,
        copy_bytes=copy_bytes,
        read_s=tuple(size / (machine.disk_bytes_per_s * efficiency) for size in read_bytes),
        copy_s=tuple(size / (machine.copy_bytes_per_s * efficiency) for size in copy_bytes),
        compute_s=(compute[0] + lookup_s, *compute[1:]),
        host_s=host_s,
    )


def _compute_s(unit: UnitProfile, machine: Machine, tokens: int) -> float:
    """Return the seconds of a forward: the arithmetic or one pass over the weights, whichever is longer."""
    return max(
        2 * unit.num_parameters * tokens / machine.flops_per_s, unit.weight_bytes / machine.memory_bytes_per_s
    )


def _lookup_s(profile: ModelProfile, machine: Machine, forward: Forward) -> float:
    rows = forward.batch_size * forward.tokens
    if forward.embedding is Residency.DISK:
        return rows * (ROW_READ_S + profile.embedding_row_bytes / machine.disk_bytes_per_s)
    if forward.embedding is Residency.HOST:
        return rows * profile.embedding_row_bytes / machine.copy_bytes_per_s
    return 0.0
