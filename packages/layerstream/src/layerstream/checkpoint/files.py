"""One open file, read at given places into given memory, past the page cache where the system allows it.

Room: bytes. It knows O_DIRECT, its alignment, and the way back to plain reads. It deliberately knows no threads, queues or
tensors. Reads may come from several threads at once.
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
"""The largest alignment that O_DIRECT may ask for; files that want more are read through the page cache."""

Opener = Callable[[str], int]
"""Opens a path for reading and returns the file descriptor. A descriptor with O_DIRECT set is read past the page cache."""

_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
# One type for every address and length: ctypes would make a new class, with its reference cycles, for each length.
_Memory = ctypes.c_char * (1 << 46)

_AT_EMPTY_PATH, _STATX_DIOALIGN, _STATX_BYTES = 0x1000, 0x2000, 256
_STATX_MASK_OFFSET, _STATX_MEMORY_ALIGN_OFFSET, _STATX_FILE_ALIGN_OFFSET = 0, 152, 156


class FileEndedError(OSError):
    """The file has fewer bytes than were asked for."""


def open_direct(path: str) -> int:
    """Open `path` past the page cache, or plainly where the file system knows no O_DIRECT."""
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
    """A file descriptor with what is known of how it may be read; closing it is the owner's duty.

    Attributes:
        direct: whether reads go past the page cache; turns False for good when a read is refused.
        alignment: what O_DIRECT asks of file offsets, lengths and addresses, in bytes.
    """

    def __init__(self, fd: int, *, alignment: int | None = None) -> None:
        """Take over `fd`; `alignment` is asked of the system when not given."""
        self._fd = fd
        self.alignment = _direct_alignment(fd) if alignment is None else alignment
        self.direct = bool(_O_DIRECT and fcntl.fcntl(fd, fcntl.F_GETFL) & _O_DIRECT)
        if self.direct and self.alignment > MAX_ALIGNMENT:
            self.stop_direct()

    def read_into(self, address: int, offset: int, num_bytes: int, bounce: BounceBuffer) -> None:
        """Read exactly `num_bytes` from `offset` to `address`; nothing beside them is touched.

        Where the address and the offset are congruent, the aligned interior is read in place and only the edges pass through
        `bounce`; otherwise everything does.

        Raises:
            FileEndedError: when the file has fewer bytes.
            OSError: when the disk fails.
        """
        end = offset + num_bytes
        inner, last_positions = align_up(offset, self.alignment), end - end % self.alignment
        if not self.direct:
            self._fill(address, offset, num_bytes, num_bytes)
        elif (address - offset) % self.alignment or inner >= last_positions:
            self._copy(address, offset, num_bytes, bounce)
        else:
            self._copy(address, offset, inner - offset, bounce)
            self._fill(address + inner - offset, inner, last_positions - inner, last_positions - inner)
            self._copy(address + last_positions - offset, last_positions, end - last_positions, bounce)

    def read_aside(self, offset: int, num_bytes: int, bounce: BounceBuffer) -> tuple[AlignedBuffer, int]:
        """Read `num_bytes` from `offset` into a buffer of `bounce`; return that buffer and where in it they start.

        Raises:
            FileEndedError: when the file has fewer bytes.
            OSError: when the disk fails.
        """
        # Also when reads are buffered: it costs nothing, and a fallback in the middle needs no second path.
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
        """Tell the system that small reads at random places follow, so that it reads nothing ahead."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read_cached(self, target: memoryview, offset: int) -> None:
        """Fill `target` from `offset` and leave the page cache as it comes; only for a file that is not read directly.

        Raises:
            FileEndedError: when the file has fewer bytes.
            OSError: when the disk fails.
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
            # ctypes lets other threads run meanwhile; a memoryview assignment would not.
            ctypes.memmove(address, buffer.address + start, num_bytes)

    def _fill(self, address: int, offset: int, num_bytes: int, needed_bytes: int) -> None:
        """Read up to `num_bytes`, at least `needed_bytes`: an aligned superset may reach beyond the end of the file."""
        memory = memoryview(_Memory.from_address(address))
        done = 0
        while done < needed_bytes:
            try:
                got = os.preadv(self._fd, [memory[done:num_bytes]], offset + done)
            except OSError as error:
                # Also when a short read left us at an odd place; a plain read then tells whether the file ends there.
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.stop_direct()
                continue
            done += _at_least_one(got, offset + done)
        if not self.direct and hasattr(os, "posix_fadvise"):
            # Weights are read in a loop larger than the cache: kept pages would only push others out.
            first = offset - offset % MAX_ALIGNMENT
            os.posix_fadvise(
                self._fd, first, align_up(offset + num_bytes - first, MAX_ALIGNMENT), os.POSIX_FADV_DONTNEED
            )


def _at_least_one(got: int, offset: int) -> int:
    if got == 0:
        raise FileEndedError(f"the file ends at or before byte {offset}")
    return got


def _direct_alignment(fd: int) -> int:
    """Return what O_DIRECT asks for on this file, by statx(2) where the system tells; else 4096, which most disks accept."""
    if not sys.platform.startswith("linux") or sys.byteorder != "little":
        return MAX_ALIGNMENT
    statx = getattr(ctypes.CDLL(None), "statx", None)
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer) != 0:
        return MAX_ALIGNMENT

    def field(at: int) -> int:
        return int.from_bytes(answer.raw[at : at + 4], "little")

    alignment = max(field(_STATX_MEMORY_ALIGN_OFFSET), field(_STATX_FILE_ALIGN_OFFSET))
    return alignment if field(_STATX_MASK_OFFSET) & _STATX_DIOALIGN and alignment else MAX_ALIGNMENT
