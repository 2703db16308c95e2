"""Place every unit of a configuration: on the device first, then in host memory, then on disk.

Decides what fits; `search` decides what is fast.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec.options import Workload
from ..spec.plans import LedgerLine, Residency
from ..spec.profiles import HostPinning, Machine, ModelProfile
from .candidates import Configuration, units_at, visited_units
from .ledger import (
    all_host_bytes,
    all_unit_bytes,
    device_lines,
    fixed_host_bytes,
    host_lines,
    total_bytes,
    weight_copies,
)
from .residency import spread, spread_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A configuration with a place for every unit.

    Attributes:
        configuration: how the model is arranged.
        residencies: where each visited unit lives, the head last.
        num_staging: pinned buffers on the way from disk to slot.
        lines: the lines of the ledger.
    """

    configuration: Configuration
    residencies: tuple[Residency, ...]
    num_staging: int
    lines: tuple[LedgerLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningProblem:
    """The inputs of one search for a plan.

    Attributes:
        profile: the model.
        workload: what each replica runs.
        machine: the machine.
        replicas_per_device: how many replicas one device holds.
        allow_sliced_head: the head may be sliced on an accelerator.
        draft_bytes: what a draft model takes on the device.
        prefix_bytes: what a service's prefix cache may take in host memory.
    """

    profile: ModelProfile
    workload: Workload
    machine: Machine
    replicas_per_device: int = 1
    allow_sliced_head: bool = False
    draft_bytes: int = 0
    prefix_bytes: int = 0

    @property
    def weight_copies(self) -> int:
        """The copies of each resident unit that one device holds."""
        return weight_copies(self.machine, self.replicas_per_device)

    def least_device_lines(self, configuration: Configuration) -> tuple[LedgerLine, ...]:
        """Return the device lines of `configuration` with as few residents as possible."""
        units = units_at(self.profile, configuration.granularity)
        return self._device_lines(configuration, 0 if configuration.num_slots else all_unit_bytes(units))

    def least_device_bytes(self, configuration: Configuration) -> int:
        """Return the device memory of `configuration` with as few residents as possible."""
        return total_bytes(self.least_device_lines(configuration))

    def least_host_bytes(self, configuration: Configuration, num_resident: int) -> int:
        """Return the smallest host memory of `configuration` with `num_resident` decoder units on the device.

        The other units either pass through staging buffers or, where that takes less, all live in host
        memory.
        """
        if self.machine.device_is_host or not configuration.num_slots:
            return self._host_bytes(configuration, 0, 0)
        units, head = units_at(self.profile, configuration.granularity), self.profile.head
        on_device = set(spread(len(units), num_resident))
        rest = all_host_bytes([unit for index, unit in enumerate(units) if index not in on_device])
        if head and not configuration.head_on_device and not self.head_is_free_in_host(configuration):
            rest += head.host_bytes
        with_staging = self._host_bytes(configuration, configuration.num_slots, 0)
        return (
            min(with_staging, self._host_bytes(configuration, 0, rest)) if self.pins_units else with_staging
        )

    def _host_bytes(self, configuration: Configuration, num_staging: int, host_unit_bytes: int) -> int:
        return total_bytes(self._host_lines(configuration, num_staging, host_unit_bytes))

    def _host_lines(
        self, configuration: Configuration, num_staging: int, host_unit_bytes: int
    ) -> tuple[LedgerLine, ...]:
        return host_lines(
            self.profile,
            self.machine,
            configuration,
            num_staging,
            host_unit_bytes,
            prefix_bytes=self.prefix_bytes,
        )

    @property
    def pins_units(self) -> bool:
        """Whether units in host memory are copied from where they are."""
        return self.machine.host_pinning is HostPinning.ALL

    def head_is_free_in_host(self, configuration: Configuration) -> bool:
        """Return whether the head takes no host memory, being tied to an embedding that lives there."""
        return self.profile.head_is_tied and configuration.embedding is Residency.HOST

    def arrange(
        self, configuration: Configuration, num_resident: int, host_budget_bytes: int
    ) -> Arrangement | None:
        """Return `configuration` with `num_resident` decoder units on the device and the others placed.

        Residents are spread evenly, and so are the units that fill the host budget; all others live on disk.
        The caller makes sure that the residents fit the device budget.

        Returns:
            The arrangement, or None when it exceeds the host budget.
        """
        profile, machine = self.profile, self.machine
        units = visited_units(profile, configuration.granularity)
        num_decoder_units = len(units_at(profile, configuration.granularity))
        on_device = set(spread(num_decoder_units, num_resident))
        if profile.head is not None and configuration.head_on_device:
            on_device.add(num_decoder_units)
        in_host, num_staging = self._place_in_host(configuration, on_device, host_budget_bytes)
        residencies = tuple(
            Residency.DEVICE if index in on_device else Residency.HOST if index in in_host else Residency.DISK
            for index in range(len(units))
        )
        host_units = [
            units[index]
            for index in in_host
            if index < num_decoder_units or not self.head_is_free_in_host(configuration)
        ]
        host = self._host_lines(configuration, num_staging, all_host_bytes(host_units))
        if not machine.device_is_host and total_bytes(host) > host_budget_bytes:
            return None
        resident_bytes = all_unit_bytes([units[index] for index in on_device if index < num_decoder_units])
        return Arrangement(
            configuration=configuration,
            residencies=residencies,
            num_staging=num_staging,
            lines=self._device_lines(configuration, resident_bytes) + host,
        )

    def _device_lines(self, configuration: Configuration, resident_bytes: int) -> tuple[LedgerLine, ...]:
        return device_lines(
            self.profile,
            self.workload,
            self.machine,
            configuration,
            resident_bytes,
            replicas_per_device=self.replicas_per_device,
            draft_bytes=self.draft_bytes,
            prefix_bytes=self.prefix_bytes,
        )

    def _place_in_host(
        self, configuration: Configuration, on_device: set[int], host_budget_bytes: int
    ) -> tuple[set[int], int]:
        """Return the units that live in host memory, and the number of staging buffers for those on disk."""
        if self.machine.device_is_host:
            return set(), 0
        units = visited_units(self.profile, configuration.granularity)
        rest = [index for index in range(len(units)) if index not in on_device]
        free: set[int] = set()
        if rest and self.head_is_free_in_host(configuration):
            free = {rest.pop()}
        sizes = [units[index].host_bytes for index in rest]
        available_bytes = host_budget_bytes - fixed_host_bytes(self.profile, configuration, self.prefix_bytes)
        if sum(sizes) <= available_bytes and self.pins_units:
            return free | set(rest), 0
        if not rest:
            return free, 0 if self.pins_units or not free else configuration.num_slots
        available_bytes -= configuration.num_slots * configuration.staging_bytes
        return free | {
            rest[index] for index in spread_within(sizes, available_bytes)
        }, configuration.num_slots
