"""Aligned buffers: where they start, what they hold, and that views outlive `close()`."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from layerstream.checkpoint.buffers import HUGE_PAGE_BYTES, AlignedBuffer, BounceBuffer


@pytest.mark.parametrize(
    "num_bytes", [1, 4096, 5000, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 7]
)
def test_a_buffer_starts_on_a_page_and_holds_what_is_written(num_bytes: int) -> None:
    buffer = AlignedBuffer(num_bytes)
    assert buffer.address % mmap.PAGESIZE == 0
    assert len(buffer.buffer) == num_bytes
    assert bytes(buffer.view(num_bytes - 1, 1)) == b"\0"
    buffer.view(num_bytes - 1, 1)[:] = b"x"
    assert ctypes.string_at(buffer.address + num_bytes - 1, 1) == b"x"
    buffer.close()


def test_buffers_take_whole_pages_and_no_more() -> None:
    assert AlignedBuffer(1).allocated_bytes == mmap.PAGESIZE
    assert AlignedBuffer(HUGE_PAGE_BYTES + 1).allocated_bytes == HUGE_PAGE_BYTES + mmap.PAGESIZE


def test_large_buffers_start_on_a_huge_page() -> None:
    for _ in range(3):
        assert AlignedBuffer(HUGE_PAGE_BYTES + 1).address % HUGE_PAGE_BYTES == 0


def test_a_view_outlives_close_and_close_may_be_called_twice() -> None:
    buffer = AlignedBuffer(HUGE_PAGE_BYTES)
    view = buffer.view(10, 3)
    view[:] = b"abc"
    buffer.close()
    buffer.close()
    assert bytes(view) == b"abc"


def test_closing_releases_the_memory() -> None:
    def is_mapped(address: int) -> bool:
        with open("/proc/self/maps") as maps:
            ranges = [line.split(" ")[0].split("-") for line in maps]
        return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)

    buffer = AlignedBuffer(64 * HUGE_PAGE_BYTES)
    middle = buffer.address + 32 * HUGE_PAGE_BYTES
    assert is_mapped(middle)
    buffer.close()
    assert not is_mapped(middle)


def test_a_view_beyond_the_end_is_refused() -> None:
    with pytest.raises(AssertionError):
        AlignedBuffer(100).view(99, 2)


def test_a_bounce_buffer_allocates_on_first_use_and_only_once() -> None:
    bounce = BounceBuffer(HUGE_PAGE_BYTES)
    assert bounce.allocated_bytes == 0
    edge = bounce.at_least(100)
    assert edge is bounce.at_least(4096)
    assert bounce.allocated_bytes < HUGE_PAGE_BYTES
    chunk = bounce.at_least(HUGE_PAGE_BYTES)
    assert chunk is bounce.at_least(HUGE_PAGE_BYTES // 2)
    assert bounce.allocated_bytes == edge.allocated_bytes + chunk.allocated_bytes
