"""One device's slots, copy stream and events.

Room: streaming. A slot is a device buffer that can hold any one unit; it is allocated once and reused for ever. On a CPU device
there is nothing to copy: the buffer that was read into is the slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .layout import UnitLayout
from .runtime import DeviceRuntime


@dataclass(slots=True)
class Slot:
    """A device buffer for one unit.

    Attributes:
        bytes: its memory.
        index: its number, for views that are made once.
        free_after: the event after which nothing on the device uses it any more.
    """

    bytes: torch.Tensor
    index: int
    free_after: Any = None


@dataclass(slots=True)
class DeviceBuffers:
    """The way onto one device.

    Attributes:
        runtime: the device's operations.
        slots: free slots; the stream takes from and gives back to this list under its own lock.
    """

    runtime: DeviceRuntime
    slots: list[Slot] = field(default_factory=list)
    _copies: Any = None

    def __post_init__(self) -> None:
        """Make the copy stream."""
        self._copies = self.runtime.copy_stream()

    def allocate(self, num_slots: int, slot_bytes: int) -> None:
        """Allocate the slots."""
        self.slots = [
            Slot(bytes=self.runtime.allocate(slot_bytes), index=index) for index in range(num_slots)
        ]

    def acquire(self, host: torch.Tensor, layout: UnitLayout, slot: Slot) -> Any:
        """Start the copy of a unit from its host buffer into `slot`; return the event that says it is there.

        The copy waits, on the device, for the last computation that used the slot: without that wait it would overwrite weights
        that a kernel is still reading.
        """
        self.runtime.stream_wait(self._copies, slot.free_after)
        self.copy_runs(host, layout, slot.bytes)
        return self.runtime.record(self._copies)

    def copy_runs(self, host: torch.Tensor, layout: UnitLayout, target: torch.Tensor) -> None:
        """Copy a unit's runs from its host layout into its device layout in `target`."""
        for run in layout.copies:
            self.runtime.copy(
                target[run.device_offset : run.device_offset + run.num_bytes],
                host[run.host_offset : run.host_offset + run.num_bytes],
                self._copies,
            )

    def ready_for_compute(self, ready: Any) -> None:
        """Order the computation after the copy: without that wait a kernel would read a half-filled slot."""
        self.runtime.stream_wait(self.runtime.compute_stream(), ready)

    def after_compute(self) -> Any:
        """Return the event that happens when all computation given to the device so far is done."""
        return self.runtime.record(self.runtime.compute_stream())

    def finish(self) -> None:
        """Block until every copy so far is done."""
        self.runtime.host_wait(self.runtime.record(self._copies))
