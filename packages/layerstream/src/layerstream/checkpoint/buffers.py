"""Provide memory to read into: page-aligned, in huge pages, faulted in once and reused.

Room: bytes. Python's own `mmap.mmap(-1, n)` would be shared memory in 4 KiB pages, which halves the disk's
speed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from ..errors import StreamError
from ..spec.sizes import KIB, MIB, align_up, format_bytes

HUGE_PAGE_BYTES = 2 * MIB

# Since Linux 5.14; Python has no name for it.
_MADV_POPULATE_WRITE = 23
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS)
_PRIVATE_ANONYMOUS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


class AlignedBuffer:
    """Private host memory that starts on a page and never moves.

    From 2 MiB on, it starts on a huge page and consists of huge pages except for the remainder at its end, so
    that no memory is wasted on rounding. `close()` drops this object's reference; the memory returns to the
    system when the last view of it (a memoryview, a torch tensor made of `buffer`) is gone, so no view ever
    dangles.

    Attributes:
        num_bytes: the requested size.
        allocated_bytes: the size taken, in whole pages.
        address: the address of the first byte; a multiple of the page size.
    """

    def __init__(self, num_bytes: int, *, fault_in: bool = True) -> None:
        """Map `num_bytes`, at least 1.

        Args:
            num_bytes: the size.
            fault_in: take all of the memory now; otherwise the caller faults it in, part by part.

        Raises:
            StreamError: the system refuses that much memory.
        """
        assert num_bytes > 0, num_bytes
        self.num_bytes = num_bytes
        self.allocated_bytes = align_up(num_bytes, mmap.PAGESIZE)
        # Extra address space in which to find the start of a huge page; the parts before and after are never
        # touched.
        slack_bytes = HUGE_PAGE_BYTES if num_bytes >= HUGE_PAGE_BYTES else 0
        try:
            memory = mmap.mmap(-1, self.allocated_bytes + slack_bytes, flags=_PRIVATE_ANONYMOUS)
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        except (OSError, MemoryError) as error:
            raise _refused(self.allocated_bytes, error) from error
        self._start = -base % HUGE_PAGE_BYTES if slack_bytes else 0
        self.address = base + self._start
        self._memory: mmap.mmap | None = memory
        self._view: memoryview | None = memoryview(memory)[self._start : self._start + num_bytes]
        _advise_huge_pages(memory, self._start, self.allocated_bytes)
        if fault_in:
            self.fault_in(0, self.allocated_bytes)

    def fault_in(self, start: int, num_bytes: int) -> None:
        """Take the memory of `num_bytes` from `start` on, both in whole pages; it is zero afterwards.

        Raises:
            StreamError: the system refuses that much memory.
        """
        assert self._memory is not None, "the buffer is closed"
        try:
            if not _populate(self.address + start, num_bytes):
                ctypes.memset(self.address + start, 0, num_bytes)
        except (OSError, MemoryError) as error:
            raise _refused(num_bytes, error) from error

    def keep_from_children(self) -> None:
        """Leave the memory out of forked processes, for which the system would copy pinned pages at once."""
        assert self._memory is not None, "the buffer is closed"
        if hasattr(mmap, "MADV_DONTFORK"):
            _advise(self._memory, mmap.MADV_DONTFORK, self._start, self.allocated_bytes)

    @property
    def buffer(self) -> memoryview:
        """The whole buffer, writable; `torch.frombuffer` keeps it alive."""
        assert self._view is not None, "the buffer is closed"
        return self._view

    def view(self, start: int, num_bytes: int) -> memoryview:
        """Return the writable bytes from `start` on; no copy."""
        assert 0 <= start <= start + num_bytes <= self.num_bytes, (start, num_bytes, self.num_bytes)
        return self.buffer[start : start + num_bytes]

    def close(self) -> None:
        """Release the memory; remaining views keep it alive. May be called more than once."""
        # Not mmap.close(): torch.frombuffer holds a reference but no export, so live tensors would be
        # unmapped.
        self._view = self._memory = None


class BounceBuffer:
    """One reader thread's buffers for bytes that cannot be read in place, allocated on first use.

    Edges take a page or two. The memory for whole chunks is allocated only when a chunk has to pass through
    it.
    """

    _EDGE_BYTES = 16 * KIB

    def __init__(self, chunk_bytes: int) -> None:
        """Allocate nothing yet; serve up to `chunk_bytes` later."""
        self._chunk_bytes = chunk_bytes
        self._edge: AlignedBuffer | None = None
        self._chunk: AlignedBuffer | None = None

    @property
    def allocated_bytes(self) -> int:
        """The memory allocated so far."""
        return sum(buffer.allocated_bytes for buffer in (self._edge, self._chunk) if buffer is not None)

    def at_least(self, num_bytes: int) -> AlignedBuffer:
        """Return a buffer of at least `num_bytes`, which may still hold data from the last call.

        Raises:
            StreamError: the system refuses the memory.
        """
        assert num_bytes <= self._chunk_bytes, (num_bytes, self._chunk_bytes)
        if num_bytes <= self._EDGE_BYTES:
            self._edge = self._edge or AlignedBuffer(self._EDGE_BYTES)
            return self._edge
        self._chunk = self._chunk or AlignedBuffer(self._chunk_bytes)
        return self._chunk


def _refused(num_bytes: int, error: Exception) -> StreamError:
    return StreamError(
        f"the system refused a buffer of {format_bytes(num_bytes)} ({error}); lower the budget or free some "
        "memory"
    )


def _advise_huge_pages(memory: mmap.mmap, start: int, num_bytes: int) -> None:
    huge_bytes = num_bytes - num_bytes % HUGE_PAGE_BYTES
    if huge_bytes and hasattr(mmap, "MADV_HUGEPAGE"):
        _advise(memory, mmap.MADV_HUGEPAGE, start, huge_bytes)
        # Where the system gives huge pages by default, the end would take a whole one.
        _advise(memory, mmap.MADV_NOHUGEPAGE, start + huge_bytes, num_bytes - huge_bytes)


def _populate(address: int, num_bytes: int) -> bool:
    """Fault the memory in; return whether the kernel can. Other threads go on, unlike with `mmap.madvise`."""
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, TypeError, AttributeError):
        return False
    arguments = ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), ctypes.c_int(_MADV_POPULATE_WRITE)
    if not num_bytes or madvise(*arguments) == 0:
        return True
    if ctypes.get_errno() not in _UNSUPPORTED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return False


def _advise(memory: mmap.mmap, advice: int, start: int, num_bytes: int) -> bool:
    """Give the kernel the advice; return whether the kernel supports it."""
    if not hasattr(memory, "madvise") or not num_bytes:
        return False
    try:
        memory.madvise(advice, start, num_bytes)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True
