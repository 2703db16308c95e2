"""Step `rates`: what the machine gives without layerstream's streaming: plain pinned copies and direct reads.

Other steps measure the same again beside their sweeps, in the same process and minute.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from common import drop_page_cache, median

from layerstream.checkpoint.reader import DiskReader, ReadRequest

from .child import Case, Child, NotHereError
from .lines import Found, Row
from .models import SEVEN_B, ensure

COPY_BYTES = 2**30
READ_BYTES = 3 * 2**29
SMALL_BYTES = 2**24
READ_AT_ONCE_BYTES = 2**28


def cases(child: Child) -> Iterator[Case]:
    """Yield the copy and the reads."""
    yield "copy", 2.0, lambda: copies(child)
    yield "disk", 3.0, lambda: reads(child)


def copies(child: Child) -> Found:
    """Copy one large buffer a few times."""
    with plain_copy(child) as copy_rate:
        rates = [copy_rate() for _ in range(7)][1:]
    kind = "from one registered buffer, on a side stream, by events"
    if child.torch_device.type != "cuda":
        kind = (
            "from torch's pinned memory" if child.is_accelerator else "from memory to memory: no device here"
        )
    what = "plain pinned copy" if child.is_accelerator else "plain copy"
    row = Row(what=what, found=f"{median(rates) / 1e9:.2f} GB/s", note=kind)
    return Found(rows=(row,), figures={"bytes_per_s": rates})


def reads(child: Child) -> Found:
    """Read a cold checkpoint with layerstream's own reader."""
    directory = ensure(child, SEVEN_B)
    rates = [cold_read_rate(child, directory, turn) for turn in range(3)]
    row = Row(
        what="direct reads",
        found=f"{median(rates) / 1e9:.2f} GB/s",
        note=f"{min(rates) / 1e9:.2f} to {max(rates) / 1e9:.2f} GB/s, layerstream's DiskReader, cold files",
    )
    return Found(rows=(row,), figures={"bytes_per_s": rates})


@contextmanager
def plain_copy(child: Child) -> Iterator[Any]:
    """Yield a function that copies one large buffer to the device and returns the bytes per second.

    On CUDA and ROCm the buffer is one mapping of its own, registered with the driver once; elsewhere it is
    torch's pinned memory. On the CPU it is a copy from memory to memory.
    """
    device, num_bytes = child.torch_device, COPY_BYTES if child.is_accelerator else SMALL_BYTES
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        with registered(num_bytes) as source:
            yield lambda: _copy_rate_by_events(target, source)
        return
    source = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=child.is_accelerator)
    yield lambda: _copy_rate_by_clock(child, target, source)


@contextmanager
def registered(num_bytes: int) -> Iterator[torch.Tensor]:
    """Yield page-locked bytes in a mapping of their own, with huge pages where the system has them."""
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    source = torch.frombuffer(memory, dtype=torch.uint8)
    source.fill_(1)
    runtime = torch.cuda.cudart()
    status = runtime.cudaHostRegister(source.data_ptr(), num_bytes, 0)
    if int(status):
        raise NotHereError(f"the driver does not register {num_bytes} bytes of host memory: {status}")
    try:
        yield source
    finally:
        torch.cuda.synchronize()
        runtime.cudaHostUnregister(source.data_ptr())


def _copy_rate_by_events(target: torch.Tensor, source: torch.Tensor) -> float:
    stream = torch.cuda.Stream(device=target.device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        start.record()
        target.copy_(source, non_blocking=True)
        end.record()
    end.synchronize()
    return source.numel() / start.elapsed_time(end) * 1e3


def _copy_rate_by_clock(child: Child, target: torch.Tensor, source: torch.Tensor) -> float:
    child.synchronize()
    start_s = perf_counter()
    target.copy_(source, non_blocking=True)
    child.synchronize()
    return source.numel() / (perf_counter() - start_s)


def cold_read_rate(child: Child, directory: Path, turn: int = 0) -> float:
    """Return the bytes per second of large reads from shards that are not cached; each turn reads others."""
    drop_page_cache(directory)
    most_bytes = READ_BYTES if child.is_accelerator else SMALL_BYTES
    pieces = _pieces(directory, most_bytes, turn)
    buffer = mmap.mmap(-1, 2 * READ_AT_ONCE_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    with DiskReader() as reader:
        start_s = perf_counter()
        tickets: list[Any] = []
        for number, (path, offset, size) in enumerate(pieces):
            if len(tickets) == 2:
                tickets.pop(0).wait()
            at = number % 2 * READ_AT_ONCE_BYTES
            target = memoryview(buffer)[at : at + size]
            request = ReadRequest(
                path=str(path), offset=offset, num_bytes=size, target=target, address=address + at
            )
            tickets.append(reader.submit([request]))
        for ticket in tickets:
            ticket.wait()
        seconds = perf_counter() - start_s
    return sum(size for _, _, size in pieces) / seconds


def _pieces(directory: Path, most_bytes: int, turn: int) -> list[tuple[Path, int, int]]:
    """Return path, offset and size of consecutive reads, from another shard in each turn."""
    shards = sorted(directory.glob("*.safetensors"))
    start = turn * max(1, len(shards) // 3) % len(shards)
    pieces: list[tuple[Path, int, int]] = []
    for path in shards[start:] + shards[:start]:
        for offset in range(0, path.stat().st_size, READ_AT_ONCE_BYTES):
            size = min(READ_AT_ONCE_BYTES, path.stat().st_size - offset)
            pieces.append((path, offset, size))
            if sum(each for _, _, each in pieces) >= most_bytes:
                return pieces
    return pieces
