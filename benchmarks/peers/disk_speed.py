"""How fast this disk gives plain direct reads: the limit that no reader of the same bytes beats.

It uses nothing of layerstream's: several threads read chunks with O_DIRECT into one buffer of huge pages,
which is large enough for a block or two and used again and again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from cold_files import drop_page_cache

NUM_THREADS = 4
CHUNK_BYTES = 8 * 1024**2
BUFFER_BYTES = 256 * 1024**2
ALIGNMENT_BYTES = 4096


class DiskSpeed:
    """Cold reads of some files, whole."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._buffer = mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._buffer.madvise(mmap.MADV_HUGEPAGE)
        self._slots = [
            memoryview(self._buffer)[start : start + CHUNK_BYTES]
            for start in range(0, BUFFER_BYTES, CHUNK_BYTES)
        ]
        for slot in self._slots:
            # the first touch of a page is not the disk's time
            slot[:: mmap.PAGESIZE] = bytes(len(slot) // mmap.PAGESIZE)

    def measure(self) -> float:
        """Return the bytes per second of reading every file once, cold."""
        for folder in {path.parent for path in self._paths}:
            drop_page_cache(folder)
        files = [_open(path) for path in self._paths]
        try:
            pieces = [
                (file, offset)
                for path, file in zip(self._paths, files, strict=True)
                for offset in range(0, path.stat().st_size, CHUNK_BYTES)
            ]
            start_s = perf_counter()
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                counts = list(pool.map(self._read, range(len(pieces)), pieces))
            return sum(counts) / (perf_counter() - start_s)
        finally:
            for file in files:
                os.close(file)

    def _read(self, number: int, piece: tuple[int, int]) -> int:
        file, offset = piece
        # as many pieces lie between two uses of a slot as there are slots: far more than threads
        return os.preadv(file, [self._slots[number % len(self._slots)]], offset)


def _open(path: Path) -> int:
    """Open with O_DIRECT, or without where the file system has none (tmpfs)."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDONLY)
