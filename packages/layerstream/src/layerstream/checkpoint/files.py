"""Read one open file at given places into given memory, past the page cache where the system allows it.

Room: bytes. It knows O_DIRECT, its alignment, and the fallback to plain reads, but no queues and no tensors.
Several threads may read at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable

from ..spec.sizes import align_up
from .buffers import AlignedBuffer, BounceBuffer

if sys.platform != "win32":
    import fcntl

MAX_ALIGNMENT = 4096
"""The largest supported alignment of O_DIRECT; a file that needs more is read through the page cache."""

Opener = Callable[[str], int]
"""Opens a path for reading and returns a descriptor; one with O_DIRECT set is read past the page cache."""

_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
# One type for every address and length: ctypes would create a new class, with reference cycles, for each
# length.
_Memory = ctypes.c_char * (1 << 46)

_AT_EMPTY_PATH, _STATX_DIOALIGN, _STATX_BYTES = 0x1000, 0x2000, 256
_STATX_MASK_OFFSET, _STATX_MEMORY_ALIGN_OFFSET, _STATX_FILE_ALIGN_OFFSET = 0, 152, 156


class FileEndedError(OSError):
    """The file has fewer bytes than requested."""


def open_direct(path: str) -> int:
    """Open `path` past the page cache, or plainly where the file system does not support O_DIRECT."""
    try:
        return os.open(path, os.O_RDONLY | _O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return open_buffered(path)


def open_buffered(path: str) -> int:
    """Open `path` for plain reads through the page cache."""
    return os.open(path, os.O_RDONLY)


class OpenFile:
    """A file descriptor and how it may be read; the owner must close it.

    Attributes:
        direct: whether reads go past the page cache; turns False permanently when the system refuses such a
            read.
        alignment: what O_DIRECT requires of file offsets, lengths and addresses, in bytes.
    """

    def __init__(self, fd: int, *, alignment: int | None = None) -> None:
        """Take over `fd`; without `alignment`, ask the system for it."""
        self._fd = fd
        self.alignment = _direct_alignment(fd) if alignment is None else alignment
        self.direct = bool(_O_DIRECT and fcntl.fcntl(fd, fcntl.F_GETFL) & _O_DIRECT)
        if self.direct and self.alignment > MAX_ALIGNMENT:
            self.stop_direct()

    def read_into(self, address: int, offset: int, num_bytes: int, bounce: BounceBuffer) -> None:
        """Read exactly `num_bytes` from `offset` to `address`, and touch no other memory.

        Where the address and the offset are congruent, the aligned interior is read in place and only the
        edges pass through `bounce`; otherwise everything does.

        Raises:
            FileEndedError: the file has fewer bytes.
            OSError: the disk fails.
        """
        end = offset + num_bytes
        inner_start, inner_end = align_up(offset, self.alignment), end - end % self.alignment
        if not self.direct:
            self._fill(address, offset, num_bytes, num_bytes)
        elif (address - offset) % self.alignment or inner_start >= inner_end:
            self._copy(address, offset, num_bytes, bounce)
        else:
            inner_bytes = inner_end - inner_start
            self._copy(address, offset, inner_start - offset, bounce)
            self._fill(address + inner_start - offset, inner_start, inner_bytes, inner_bytes)
            self._copy(address + inner_end - offset, inner_end, end - inner_end, bounce)

    def read_aside(self, offset: int, num_bytes: int, bounce: BounceBuffer) -> tuple[AlignedBuffer, int]:
        """Read `num_bytes` from `offset` into a buffer of `bounce`.

        Returns:
            The buffer, and the place in it where the bytes start.

        Raises:
            FileEndedError: the file has fewer bytes.
            OSError: the disk fails.
        """
        # Aligned also when reads are buffered: it costs nothing, and a fallback halfway needs no second path.
        first = offset - offset % self.alignment
        start = offset - first
        span_bytes = align_up(start + num_bytes, self.alignment)
        buffer = bounce.at_least(span_bytes)
        self._fill(buffer.address, first, span_bytes, start + num_bytes)
        return buffer, start

    def stop_direct(self) -> None:
        """Read through the page cache from now on."""
        self.direct = False
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~_O_DIRECT)

    def expect_scattered_reads(self) -> None:
        """Tell the system that small reads at random places follow, so that it does not read ahead."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read_cached(self, target: memoryview, offset: int) -> None:
        """Fill `target` from `offset` through the page cache; only for a file that is not read directly.

        Raises:
            FileEndedError: the file has fewer bytes.
            OSError: the disk fails.
        """
        done = 0
        while done < target.nbytes:
            done += _at_least_one(os.preadv(self._fd, [target[done:]], offset + done), offset + done)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def _copy(self, address: int, offset: int, num_bytes: int, bounce: BounceBuffer) -> None:
        if num_bytes:
            buffer, start = self.read_aside(offset, num_bytes, bounce)
            # ctypes releases the interpreter's lock during the copy; a memoryview assignment would not.
            ctypes.memmove(address, buffer.address + start, num_bytes)

    def _fill(self, address: int, offset: int, num_bytes: int, needed_bytes: int) -> None:
        """Read up to `num_bytes`, at least `needed_bytes`: an aligned read may go past the file's end."""
        memory = memoryview(_Memory.from_address(address))
        done = 0
        while done < needed_bytes:
            try:
                got = os.preadv(self._fd, [memory[done:num_bytes]], offset + done)
            except OSError as error:
                # This also happens after a short read to an unaligned place; a plain read then tells whether
                # the file ends.
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.stop_direct()
                continue
            done += _at_least_one(got, offset + done)
        if not self.direct and hasattr(os, "posix_fadvise"):
            # Weights are read in a loop larger than the cache, so keeping their pages would only evict
            # others.
            first = offset - offset % MAX_ALIGNMENT
            os.posix_fadvise(
                self._fd, first, align_up(offset + num_bytes - first, MAX_ALIGNMENT), os.POSIX_FADV_DONTNEED
            )


def _at_least_one(got: int, offset: int) -> int:
    if got == 0:
        raise FileEndedError(f"the file ends at or before byte {offset}")
    return got


def _direct_alignment(fd: int) -> int:
    """Return the alignment that O_DIRECT needs on this file: statx(2)'s, or 4096, which most disks accept."""
    if not sys.platform.startswith("linux") or sys.byteorder != "little":
        return MAX_ALIGNMENT
    statx = getattr(ctypes.CDLL(None), "statx", None)
    result = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, result) != 0:
        return MAX_ALIGNMENT

    def field(at: int) -> int:
        return int.from_bytes(result.raw[at : at + 4], "little")

    alignment = max(field(_STATX_MEMORY_ALIGN_OFFSET), field(_STATX_FILE_ALIGN_OFFSET))
    return alignment if field(_STATX_MASK_OFFSET) & _STATX_DIOALIGN and alignment else MAX_ALIGNMENT
