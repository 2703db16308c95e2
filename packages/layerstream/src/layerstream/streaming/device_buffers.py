"""One device's slots, copy stream and events.

A slot is a device buffer that can hold any one unit; it is allocated once and reused. On a CPU device there
is nothing to copy: the buffer that was read into is the slot. Room: streaming.
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
        index: its number; tells apart the views into different slots.
        free_after: the event after which no computation on the device uses it any more.
    """

    bytes: torch.Tensor
    index: int
    free_after: Any = None


@dataclass(slots=True)
class DeviceBuffers:
    """One device's slots and its copy stream.

    Attributes:
        runtime: the device's operations.
        slots: all slots; the weight stream keeps track of the free ones.
    """

    runtime: DeviceRuntime
    slots: list[Slot] = field(default_factory=list)
    _copies: Any = None
    _freed: list[int] | None = None

    def __post_init__(self) -> None:
        """Make the copy stream."""
        self._copies = self.runtime.copy_stream()

    def allocate(self, num_slots: int, slot_bytes: int) -> None:
        """Allocate the slots."""
        self.slots = [
            Slot(bytes=self.runtime.allocate(slot_bytes), index=index) for index in range(num_slots)
        ]

    def free(self) -> None:
        """Free the slots until `restore`; no unit may be on its way to them."""
        self.finish()
        self.runtime.host_wait(self.compute_event())
        self._freed = [slot.bytes.numel() for slot in self.slots]
        self.slots = []

    def restore(self) -> bool:
        """Allocate the slots again; return whether they had been freed."""
        if self._freed is None:
            return False
        # What used their memory meanwhile may still be computing.
        event = self.compute_event()
        self.slots = [
            Slot(bytes=self.runtime.allocate(slot_bytes), index=index, free_after=event)
            for index, slot_bytes in enumerate(self._freed)
        ]
        self._freed = None
        return True

    def start_copy(self, host: torch.Tensor, layout: UnitLayout, slot: Slot) -> Any:
        """Start to copy a unit from its host buffer into `slot`; return the event of the copy's end.

        The copy waits, on the device, for the last computation that used the slot: without this wait it would
        overwrite weights that a kernel is still reading.
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

    def order_compute_after(self, copied: Any) -> None:
        """Let later computation wait for a copy: without it a kernel would read a half-filled slot."""
        self.runtime.stream_wait(self.runtime.compute_stream(), copied)

    def compute_event(self) -> Any:
        """Return the event that happens when all computation issued to the device so far is done."""
        return self.runtime.record(self.runtime.compute_stream())

    def finish(self) -> None:
        """Block until every copy so far is done."""
        self.runtime.host_wait(self.runtime.record(self._copies))
