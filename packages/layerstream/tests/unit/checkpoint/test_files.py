"""Direct reads of one file, also when the kernel refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from layerstream.checkpoint.buffers import AlignedBuffer, BounceBuffer
from layerstream.checkpoint.files import MAX_ALIGNMENT, FileEndedError, OpenFile, open_buffered, open_direct

CONTENT = np.random.default_rng(1).integers(0, 256, 100_001, dtype=np.uint8).tobytes()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file of random bytes."""
    (tmp_path / "bytes").write_bytes(CONTENT)
    return str(tmp_path / "bytes")


@pytest.fixture
def misaligned(path: str) -> Iterator[OpenFile]:
    """A file opened with O_DIRECT and a wrong alignment of 1: the kernel refuses unaligned reads (EINVAL)."""
    file = OpenFile(open_direct(path), alignment=1)
    yield file
    file.close()


def test_a_read_that_o_direct_refuses_goes_through_the_page_cache(misaligned: OpenFile) -> None:
    buffer = AlignedBuffer(5000)
    misaligned.read_into(buffer.address + 3, 7, 4000, BounceBuffer(16384))
    assert bytes(buffer.view(3, 4000)) == CONTENT[7:4007]


def test_a_direct_file_stays_direct_for_every_target_address(path: str) -> None:
    file = OpenFile(open_direct(path))
    was_direct = file.direct
    buffer, bounce = AlignedBuffer(90_000), BounceBuffer(106_496)
    for start, offset, num_bytes in [
        (0, 64, 50_000),
        (3, 0, 50_000),
        (64, 64, 50_000),
        (5, 4101, 20),
        (0, 95_905, 4096),
    ]:
        file.read_into(buffer.address + start, offset, num_bytes, bounce)
        assert bytes(buffer.view(start, num_bytes)) == CONTENT[offset : offset + num_bytes]
    assert file.direct == was_direct
    file.close()


def test_reading_past_the_end_fails_both_direct_and_buffered(path: str) -> None:
    for opener in (open_direct, open_buffered):
        file = OpenFile(opener(path))
        buffer, bounce = AlignedBuffer(200_000), BounceBuffer(204_800)
        file.read_into(buffer.address, 0, len(CONTENT), bounce)
        assert bytes(buffer.view(0, len(CONTENT))) == CONTENT
        for start in (0, 1):
            with pytest.raises(FileEndedError):
                file.read_into(buffer.address + start, 0, len(CONTENT) + 1, bounce)
        file.close()


def test_a_file_that_needs_a_larger_alignment_is_read_plainly(path: str) -> None:
    file = OpenFile(open_direct(path), alignment=2 * MAX_ALIGNMENT)
    assert not file.direct
    file.close()


def test_a_read_with_the_alignment_from_statx_is_accepted(path: str) -> None:
    file = OpenFile(open_direct(path))
    was_direct = file.direct
    buffer = AlignedBuffer(MAX_ALIGNMENT * 2)
    # Offset by one alignment in file and memory: the least that must work.
    file.read_into(buffer.address + file.alignment, file.alignment, file.alignment, BounceBuffer(16384))
    assert bytes(buffer.view(file.alignment, file.alignment)) == CONTENT[file.alignment : 2 * file.alignment]
    assert file.direct == was_direct
    file.close()
