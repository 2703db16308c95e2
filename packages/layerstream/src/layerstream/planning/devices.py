"""Combine several devices into the one machine that their common plan must suit.

All devices visit the same units in step and share every read. A unit that one device must read is read
anyway: keeping it on a larger device saves that device a copy, but no disk read. So one plan, made for the
device with the least memory, serves all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import PlanError
from ..spec.profiles import HostPinning, Machine

_WORST_FIRST = (HostPinning.ROUNDED, HostPinning.STAGING, HostPinning.ALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """The devices of one plan.

    Attributes:
        machine: the minimum of the devices' memory and rates; `device` is the one with the least memory.
        names: the devices in order; a device named twice holds two replicas.
        replicas_per_device: the largest number of replicas on one device.
    """

    machine: Machine
    names: tuple[str, ...]
    replicas_per_device: int


def group_devices(machines: Sequence[Machine]) -> DeviceGroup:
    """Return the machine that a common plan for `machines` must suit. Replicas on one device share its rates.

    Raises:
        PlanError: there are no machines, or CPUs and accelerators are mixed.
    """
    if not machines:
        raise PlanError("a plan needs at least one device; got an empty list")
    names = tuple(machine.device for machine in machines)
    if len({machine.device_is_host for machine in machines}) > 1:
        raise PlanError(
            f"devices {', '.join(names)} cannot share one plan: a CPU uses weights in place, in host memory, "
            "and an accelerator needs copies; name devices of one kind"
        )
    replicas = Counter(names)
    smallest = min(machines, key=lambda machine: machine.device_memory_bytes)
    return DeviceGroup(
        machine=replace(
            smallest,
            host_memory_bytes=min(machine.host_memory_bytes for machine in machines),
            disk_bytes_per_s=min(machine.disk_bytes_per_s for machine in machines),
            copy_bytes_per_s=min(machine.copy_bytes_per_s / replicas[machine.device] for machine in machines),
            memory_bytes_per_s=min(
                machine.memory_bytes_per_s / replicas[machine.device] for machine in machines
            ),
            pageable_bytes_per_s=min(machine.pageable_bytes_per_s for machine in machines),
            flops_per_s=min(machine.flops_per_s / replicas[machine.device] for machine in machines),
            runtime_bytes=max(machine.runtime_bytes for machine in machines),
            host_pinning=next(p for p in _WORST_FIRST if p in {m.host_pinning for m in machines}),
            measured=all(machine.measured for machine in machines),
        ),
        names=names,
        replicas_per_device=max(replicas.values()),
    )
