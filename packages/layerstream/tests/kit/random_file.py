"""A file's random content, and requests that read parts of it into guarded memory.

Test kit. It uses the reader's requests and buffers alone.
"""

from __future__ import annotations

import numpy as np

from layerstream.checkpoint.buffers import AlignedBuffer
from layerstream.checkpoint.reader import DiskReader, ReadRequest

FILE_BYTES = 1_000_003
CHUNK_BYTES = 16 * 1024
CONTENT = np.random.default_rng(0).integers(0, 256, FILE_BYTES, dtype=np.uint8).tobytes()
GUARD = 0xA5


def into(buffer: AlignedBuffer, start: int, path: str, offset: int, num_bytes: int) -> ReadRequest:
    target = buffer.view(start, num_bytes)
    return ReadRequest(
        path=path, offset=offset, num_bytes=num_bytes, target=target, address=buffer.address + start
    )


def guarded(num_bytes: int) -> AlignedBuffer:
    buffer = AlignedBuffer(num_bytes)
    buffer.buffer[:] = bytes([GUARD]) * num_bytes
    return buffer


def uses_direct(reader: DiskReader, path: str) -> bool:
    """Return whether `reader` reads `path` past the page cache."""
    return reader._open(path, reader._files).direct


def bounce_bytes(reader: DiskReader) -> int:
    """Return the memory that the reader's own buffers hold now."""
    return sum(bounce.allocated_bytes for bounce in reader._bounces)
