"""Predict how long a placement takes.

Combines the physical bounds of a sweep (bytes over bandwidth) with the simulated pipeline, which stays above
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..spec.plans import Residency, SweepCost
from .simulate import Buffers, sweep_ends
from .visit_times import VisitTimes

SIMULATED_SWEEPS = 3
"""Decode sweeps simulated to find the steady state; the first is a warm-up and is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadTimes:
    """The visit times of the two kinds of sweep in a workload.

    Attributes:
        prefill: the sweep with the prompt.
        decode: a sweep with one new token per sequence.
        new_tokens: how many decode sweeps there are.
    """

    prefill: VisitTimes
    decode: VisitTimes
    new_tokens: int


def workload_s(cost: SweepCost, new_tokens: int) -> float:
    """Return the seconds of a whole workload: the prefill and one sweep for every new token."""
    return cost.prefill_s + new_tokens * cost.sweep_s


def bound_s(times: WorkloadTimes, read_share: float, copy_share: float) -> float:
    """Return a lower bound in seconds, given the shares of the weights that must be read and copied."""
    read_s, copy_s = read_share * sum(times.decode.read_s), copy_share * sum(times.decode.copy_s)
    moved_s = max(read_s, copy_s)
    decode_s = max(moved_s, sum(times.decode.compute_s))
    return max(moved_s, sum(times.prefill.compute_s)) + times.new_tokens * decode_s


def sweep_cost(times: WorkloadTimes, residencies: Sequence[Residency], buffers: Buffers) -> SweepCost:
    """Return what one sweep moves and how long that takes.

    Args:
        times: how long the visits take.
        residencies: where each unit lives, by unit index.
        buffers: slots and staging buffers.
    """
    decode, prefill = times.decode, times.prefill
    places = [residencies[unit] for unit in decode.unit_index]
    read = [index for index, place in enumerate(places) if place is Residency.DISK]
    copied = [index for index, place in enumerate(places) if place is not Residency.DEVICE]
    seconds = {
        "disk": sum(decode.read_s[index] for index in read),
        "copy": sum(decode.copy_s[index] for index in copied),
        "compute": sum(decode.compute_s),
    }
    ends = sweep_ends(decode, residencies, buffers, SIMULATED_SWEEPS)
    steady_s = (ends[-1] - ends[0]) / (SIMULATED_SWEEPS - 1)
    return SweepCost(
        read_bytes=sum(decode.read_bytes[index] for index in read),
        copy_bytes=sum(decode.copy_bytes[index] for index in copied),
        read_s=seconds["disk"],
        copy_s=seconds["copy"],
        compute_s=seconds["compute"],
        # the pipeline's period may exceed three sweeps; never promise more than the bandwidths allow
        sweep_s=max(steady_s, *seconds.values()),
        prefill_s=sweep_ends(prefill, residencies, buffers, 1)[0],
        limited_by=max(seconds, key=lambda name: seconds[name]),
    )
