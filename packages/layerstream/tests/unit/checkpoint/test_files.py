"""One file read directly: what happens where the kernel refuses."""

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
def misjudged(path: str) -> Iterator[OpenFile]:
    """A file opened with O_DIRECT whose alignment is believed to be 1: the kernel answers odd reads with EINVAL."""
    file = OpenFile(open_direct(path), alignment=1)
    yield file
    file.close()


def test_a_read_that_o_direct_refuses_is_done_through_the_page_cache(misjudged: OpenFile) -> None:
    buffer = AlignedBuffer(5000)
    misjudged.read_into(buffer.address + 3, 7, 4000, BounceBuffer(16384))
    assert bytes(buffer.view(3, 4000)) == CONTENT[7:4007]


def test_no_place_in_memory_makes_a_direct_file_go_through_the_page_cache(path: str) -> None:
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


def test_the_end_of_the_file_is_told_in_either_way(path: str) -> None:
    for opener in (open_direct, open_buffered):
        file = OpenFile(opener(path))
        buffer, bounce = AlignedBuffer(200_000), BounceBuffer(204_800)
        file.read_into(buffer.address, 0, len(CONTENT), bounce)
        assert bytes(buffer.view(0, len(CONTENT))) == CONTENT
        for start in (0, 1):
            with pytest.raises(FileEndedError):
                file.read_into(buffer.address + start, 0, len(CONTENT) + 1, bounce)
        file.close()


def test_a_file_that_wants_more_alignment_than_we_give_is_read_plainly(path: str) -> None:
    file = OpenFile(open_direct(path), alignment=2 * MAX_ALIGNMENT)
    assert not file.direct
    file.close()


def test_the_alignment_the_system_tells_is_accepted_by_it(path: str) -> None:
    file = OpenFile(open_direct(path))
    was_direct = file.direct
    buffer = AlignedBuffer(MAX_ALIGNMENT * 2)
    # One alignment into both: the least that is promised to work.
    file.read_into(buffer.address + file.alignment, file.alignment, file.alignment, BounceBuffer(16384))
    assert bytes(buffer.view(file.alignment, file.alignment)) == CONTENT[file.alignment : 2 * file.alignment]
    assert file.direct == was_direct
    file.close()
