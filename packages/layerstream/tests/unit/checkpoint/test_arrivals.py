"""Reading files that are still on their way: waits end with the bytes, an error, or the reader's end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from layerstream.checkpoint.arrivals import (
    announce,
    announce_bytes,
    announce_end,
    announce_failure,
    open_arriving,
    wait_for,
)
from layerstream.checkpoint.buffers import AlignedBuffer
from layerstream.checkpoint.reader import DiskReader, ReadRequest
from layerstream.errors import FetchError, ReadFailedError, StreamClosedError

CONTENT = bytes(range(256)) * 256


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is on its way, and of which nothing is there."""
    path = tmp_path / "weights"
    announce(path, tmp_path / "weights.part")
    return path


def bring(path: Path, num_bytes: int) -> None:
    path.with_name("weights.part").write_bytes(CONTENT[:num_bytes])
    announce_bytes(path, num_bytes)


def finish(path: Path) -> None:
    bring(path, len(CONTENT))
    path.with_name("weights.part").rename(path)
    announce_end(path)


def test_a_read_waits_for_its_own_bytes_only(path: Path) -> None:
    bring(path, 20_000)
    first, second = AlignedBuffer(8192), AlignedBuffer(8192)
    with DiskReader() as reader:

        def read(offset: int, buffer: AlignedBuffer) -> ReadRequest:
            view = buffer.view(0, 8192)
            return ReadRequest(
                path=str(path), offset=offset, num_bytes=8192, target=view, address=buffer.address
            )

        reader.submit([read(4096, first)]).wait()
        late = reader.submit([read(40_960, second)])
        assert bytes(first.view(0, 8192)) == CONTENT[4096:12_288]
        assert not late.done
        finish(path)
        late.wait()
        assert bytes(second.view(0, 8192)) == CONTENT[40_960:49_152]


def test_rows_wait_too(path: Path) -> None:
    row = bytearray(100)
    with DiskReader() as reader:
        thread = threading.Thread(target=reader.read_now, args=(str(path), 50_000, memoryview(row)))
        thread.start()
        finish(path)
        thread.join()
    assert bytes(row) == CONTENT[50_000:50_100]


def test_a_failed_copy_fails_the_read_with_its_reason(path: Path) -> None:
    announce_failure(path, FetchError("the disk is too full"))
    with pytest.raises(ReadFailedError, match="too full") as caught:
        wait_for(str(path), 1)
    assert caught.value.path == str(path)


def test_a_stopped_copy_ends_the_wait(path: Path) -> None:
    announce_failure(path, None)
    with pytest.raises(StreamClosedError, match="stopped"):
        wait_for(str(path), None)


def test_closing_the_reader_ends_the_wait(path: Path) -> None:
    reader = DiskReader()
    buffer = AlignedBuffer(4096)
    view = buffer.view(0, 4096)
    ticket = reader.submit(
        [ReadRequest(path=str(path), offset=0, num_bytes=4096, target=view, address=buffer.address)]
    )
    reader.close()
    with pytest.raises(StreamClosedError):
        ticket.wait()


def test_what_nobody_announced_is_not_waited_for(tmp_path: Path) -> None:
    wait_for(str(tmp_path / "elsewhere"), 1 << 40)
    with pytest.raises(FileNotFoundError):
        open_arriving(str(tmp_path / "elsewhere"), lambda path: os.open(path, os.O_RDONLY))


def test_a_descriptor_of_a_part_stays_valid_when_the_file_is_whole(path: Path) -> None:
    bring(path, 10)
    descriptor = open_arriving(str(path), lambda path: os.open(path, os.O_RDONLY))
    finish(path)
    try:
        assert os.pread(descriptor, 10, 0) == CONTENT[:10]
    finally:
        os.close(descriptor)
