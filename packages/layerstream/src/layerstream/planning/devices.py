"""Several devices as one: the machine that a common plan has to suit.

Room: planning (pure: no torch, no I/O). All devices visit the same units in step, fed by one reading. A unit that one of them must
read is read anyway, so keeping it on a larger device would spare that device a copy and no disk anything; one plan, made for the
device that has the least, is the plan of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import PlanError
from ..spec.profiles import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """The devices of one plan.

    Attributes:
        machine: the least of each device's memory and rates; `device` is the one with the least memory.
        names: the devices in order; one that is named twice has two replicas.
        replicas: how many replicas one device has at most.
    """

    machine: Machine
    names: tuple[str, ...]
    replicas: int


def group_devices(machines: Sequence[Machine]) -> DeviceGroup:
    """Return the machine that a common plan for `machines` has to suit. Lanes on one device share its rates.

    Raises:
        PlanError: there is none, or some are CPUs and some are not.
    """
    if not machines:
        raise PlanError("a plan needs at least one device; got an empty list")
    names = tuple(machine.device for machine in machines)
    if len({machine.device_is_host for machine in machines}) > 1:
        raise PlanError(
            f"devices {', '.join(names)} cannot share one plan: weights for a CPU stay in host memory, those for an accelerator "
            "are copied; name devices of one kind"
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
            flops_per_s=min(machine.flops_per_s / replicas[machine.device] for machine in machines),
            runtime_bytes=max(machine.runtime_bytes for machine in machines),
            measured=all(machine.measured for machine in machines),
        ),
        names=names,
        replicas=max(replicas.values()),
    )
