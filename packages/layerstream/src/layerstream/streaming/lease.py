"""One unit that a replica's stream delivers, and where it is. Room: streaming."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LayerstreamError
from .device_buffers import Slot
from .fetches import Fetch
from .visit_spans import VisitMarks


@dataclass(slots=True, eq=False)
class Lease:
    """One unit on its way to the device, then in place.

    Attributes:
        unit: the index of the unit in the stream.
        fetch: the fetch that it came with; on a CPU device, it holds the unit's buffer.
        slot: the device slot that it is in; None on a CPU device, and before the copy.
        marks: tell when it was copied and used; None before that.
        error: why it could not be fetched or copied.
    """

    unit: int
    fetch: Fetch
    slot: Slot | None = None
    marks: VisitMarks | None = None
    error: LayerstreamError | None = None

    @property
    def key(self) -> tuple[int, int]:
        """The unit and the number of its slot or buffer: the same key means the same addresses."""
        return self.unit, self.buffer_index if self.slot is None else self.slot.index

    @property
    def buffer_index(self) -> int:
        """The number of the host buffer that it is in; -1 when it is in none."""
        return -1 if self.fetch.buffer is None else self.fetch.buffer.index
