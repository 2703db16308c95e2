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
from .visit_spans import VisitMarks


@dataclass(slots=True, eq=False)
class Slot:
    """A device buffer for one unit.

    Attributes:
        bytes: its memory.
        index: its number; tells apart the views into different slots.
        copied: happens when the last copy into it is done.
        released: happens when the last computation that used it is done.
    """

    bytes: torch.Tensor
    index: int
    copied: Any
    released: Any


@dataclass(slots=True)
class DeviceBuffers:
    """One device's slots and its copy stream.

    Attributes:
        runtime: the device's operations.
        slots: all slots; the weight stream keeps track of the free ones.
        copies: the stream of all copies.
    """

    runtime: DeviceRuntime
    slots: list[Slot] = field(default_factory=list)
    copies: Any = None
    _freed: list[int] | None = None

    def __post_init__(self) -> None:
        """Make the copy stream."""
        self.copies = self.runtime.copy_stream()

    def allocate(self, num_slots: int, slot_bytes: int) -> None:
        """Allocate the slots."""
        runtime = self.runtime
        self.slots = [
            Slot(
                runtime.allocate(slot_bytes), index, copied=runtime.new_event(), released=runtime.new_event()
            )
            for index in range(num_slots)
        ]
        for slot in self.slots:
            self.record_release(slot)  # What used their memory before may still be computing.

    def free(self) -> None:
        """Free the slots until `restore`; no unit may be on its way to them."""
        self.finish()
        self.finish_computation()
        self._freed = [slot.bytes.numel() for slot in self.slots]
        self.slots = []

    def restore(self) -> bool:
        """Allocate the slots again; return whether they had been freed."""
        if self._freed is None:
            return False
        self.allocate(len(self._freed), max(self._freed, default=0))
        self._freed = None
        return True

    def start_copy(self, host: torch.Tensor, layout: UnitLayout, slot: Slot, marks: VisitMarks) -> None:
        """Start to copy a unit from its host buffer into `slot`; `slot.copied` happens when that is done.

        The copy waits, on the device, for the last computation that used the slot: without this wait it would
        overwrite weights that a kernel is still reading.
        """
        runtime = self.runtime
        runtime.stream_wait(self.copies, slot.released)
        runtime.mark(marks.copy_start, self.copies)
        self.copy_runs(host, layout, slot.bytes)
        # The computation waits for `copied`: by its end, the mark before that has passed too.
        runtime.mark(marks.copy_end, self.copies)
        runtime.record(slot.copied, self.copies)
        marks.copied_bytes = layout.copied_bytes

    def copy_runs(self, host: torch.Tensor, layout: UnitLayout, target: torch.Tensor) -> None:
        """Copy a unit's runs from its host layout into its device layout in `target`."""
        pairs = [
            (
                target[run.device_offset : run.device_offset + run.num_bytes],
                host[run.host_offset : run.host_offset + run.num_bytes],
            )
            for run in layout.copies
        ]
        self.runtime.copy(pairs, self.copies)

    def record_release(self, slot: Slot) -> None:
        """Let the next copy into `slot` wait for all computation issued so far."""
        self.runtime.record(slot.released, self.runtime.compute_stream())

    def finish(self) -> None:
        """Block until every copy so far is done."""
        self._finish(self.copies)

    def finish_computation(self) -> None:
        """Block until all computation that this thread issued is done."""
        self._finish(self.runtime.compute_stream())

    def _finish(self, stream: Any) -> None:
        event = self.runtime.new_event()
        self.runtime.record(event, stream)
        self.runtime.host_wait(event)
