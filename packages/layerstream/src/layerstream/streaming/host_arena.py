"""Host memory from which units are copied to a device: one mapping, which takes its size and no more.

torch's own pinned allocations are rounded up to powers of two, which can double them. Here the memory is our
own, in huge pages, and the driver pins it where it is. It is pinned in pieces, each of which holds whole
buffers: a copy must not cross from one piece into the next. Room: streaming.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..checkpoint.buffers import AlignedBuffer
from ..spec.sizes import MIB, align_up
from .buffers import HostBuffer
from .runtime import DeviceRuntime

_PAGE = mmap.PAGESIZE
"""The driver pins whole pages of the system, which are 64 KiB on some ARM servers."""

PIECE_BYTES = 256 * MIB
"""The size of a piece; one that holds a larger buffer is as large as that."""


@dataclass(slots=True)
class _Piece:
    """A part of the arena that is faulted in and pinned as a whole."""

    start: int
    num_bytes: int
    is_ready: bool = False


class HostArena:
    """Buffers in one mapping. Each must be made `ready` before its first use.

    Attributes:
        num_bytes: the size of all buffers, in whole pages.
    """

    def __init__(self, sizes: Sequence[int], runtime: DeviceRuntime, *, pins: bool = True) -> None:
        """Reserve address space; no memory is taken yet.

        Args:
            sizes: the buffers' sizes in bytes.
            runtime: pins the memory, if its device wants that.
            pins: False leaves the memory as it is.

        Raises:
            StreamError: the system does not have that much address space.
        """
        self._runtime = runtime
        self._pins = pins and runtime.pins_host_memory and runtime.registers_host_memory
        self._starts = [0, *accumulate(align_up(size, _PAGE) for size in sizes)]
        self.num_bytes = self._starts.pop()
        self._memory: AlignedBuffer | None = None
        self._buffers: list[HostBuffer] = []
        self._pinned: list[int] = []
        self._pieces: list[_Piece] = []
        self._piece_of: list[_Piece] = []
        if self.num_bytes:
            self._memory = AlignedBuffer(self.num_bytes, fault_in=False)
            if self._pins:
                self._memory.keep_from_children()
            self._buffers = self._cut(self._memory, sizes)
            self._group(sizes)
        # Also for an arena that is dropped without `close`.
        self._unpin = weakref.finalize(self, _unpin_all, runtime, self._pinned, self._memory)
        self._unpin.atexit = False

    def _cut(self, memory: AlignedBuffer, sizes: Sequence[int]) -> list[HostBuffer]:
        whole = HostBuffer(
            bytes=torch.frombuffer(memory.buffer, dtype=torch.uint8),
            view=memory.buffer,
            address=memory.address,
        )
        return [whole.part(start, size) for start, size in zip(self._starts, sizes, strict=True)]

    def _group(self, sizes: Sequence[int]) -> None:
        for start, size in zip(self._starts, sizes, strict=True):
            num_bytes = align_up(size, _PAGE)
            if not self._pieces or self._pieces[-1].num_bytes + num_bytes > PIECE_BYTES:
                self._pieces.append(_Piece(start, 0))
            self._pieces[-1].num_bytes += num_bytes
            self._piece_of.append(self._pieces[-1])

    def ready(self, index: int) -> HostBuffer:
        """Return buffer `index`, faulted in and pinned.

        Raises:
            StreamError: the system refuses the memory.
            PinningError: the driver refuses to pin it.
        """
        piece = self._piece_of[index]
        if not piece.is_ready:
            assert self._memory is not None
            self._memory.fault_in(piece.start, piece.num_bytes)
            if self._pins:
                address = self._memory.address + piece.start
                self._runtime.register_host(address, piece.num_bytes)
                self._pinned.append(address)
            piece.is_ready = True
        return self._buffers[index]

    def close(self) -> None:
        """Unpin everything and let go of it. No copy and no read may be under way; safe to call twice."""
        self._unpin()
        self._buffers.clear()
        self._memory = None


def _unpin_all(runtime: DeviceRuntime, addresses: list[int], memory: AlignedBuffer | None) -> None:
    """Unpin what is pinned, while `memory` is still there: the driver would go on using its old pages."""
    while addresses:
        runtime.unregister_host(addresses.pop())
