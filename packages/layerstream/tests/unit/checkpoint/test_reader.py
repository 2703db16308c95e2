"""The parallel reader: every byte lands in its place, nothing else is touched, and errors say where."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.random_file import CHUNK_BYTES, CONTENT, FILE_BYTES, GUARD, bounce_bytes, guarded, into, uses_direct

from layerstream.checkpoint.buffers import AlignedBuffer
from layerstream.checkpoint.files import open_buffered, open_direct
from layerstream.checkpoint.reader import DiskReader, ReadRequest
from layerstream.errors import ReadFailedError

places = st.tuples(st.integers(0, FILE_BYTES), st.integers(0, 5 * CHUNK_BYTES)).map(
    lambda place: (place[0], min(place[1], FILE_BYTES - place[0]))
)


@settings(deadline=None)
@given(place=places, misalignment=st.integers(0, 9000), congruent=st.booleans())
def test_exactly_the_requested_bytes_land_in_the_target(
    place: tuple[int, int], misalignment: int, congruent: bool, reader: DiskReader, path: str
) -> None:
    offset, num_bytes = place
    start = offset % 4096 if congruent else misalignment
    buffer = guarded(start + num_bytes + 5000)
    assert reader.submit([into(buffer, start, path, offset, num_bytes)]).wait(30)
    memory = bytes(buffer.buffer)
    assert memory[start : start + num_bytes] == CONTENT[offset : offset + num_bytes]
    assert set(memory[:start] + memory[start + num_bytes :]) == {GUARD}


@settings(deadline=None)
@given(place=places)
def test_delivered_chunks_are_exactly_the_requested_bytes(
    place: tuple[int, int], reader: DiskReader, path: str
) -> None:
    offset, num_bytes = place
    chunks: dict[int, bytes] = {}

    def deliver(chunk: memoryview, first_byte: int) -> None:
        assert first_byte not in chunks
        chunks[first_byte] = bytes(chunk)

    ticket = reader.submit([ReadRequest(path=path, offset=offset, num_bytes=num_bytes, deliver=deliver)])
    assert ticket.wait(30)
    assert all(first_byte % 64 == 0 for first_byte in chunks)
    assert (
        b"".join(chunks[first_byte] for first_byte in sorted(chunks)) == CONTENT[offset : offset + num_bytes]
    )


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300_000), min_size=2, max_size=8, unique=True).map(sorted), seed=st.randoms()
)
def test_adjacent_requests_are_read_correctly_in_any_order(
    cuts: list[int], seed: object, reader: DiskReader, path: str
) -> None:
    buffer = guarded(310_000)
    requests = [into(buffer, start, path, start, end - start) for start, end in itertools.pairwise(cuts)]
    seed.shuffle(requests)  # type: ignore[attr-defined]
    assert reader.submit(requests).wait(30)
    assert bytes(buffer.view(cuts[0], cuts[-1] - cuts[0])) == CONTENT[cuts[0] : cuts[-1]]
    assert set(bytes(buffer.buffer[: cuts[0]]) + bytes(buffer.buffer[cuts[-1] :])) == {GUARD}


def test_adjacent_requests_take_no_more_reads_than_one_request(path: str) -> None:
    whole, pieces = AlignedBuffer(CHUNK_BYTES), AlignedBuffer(CHUNK_BYTES)
    with DiskReader(num_threads=1, chunk_bytes=CHUNK_BYTES) as reader:
        one = reader.submit([into(whole, 0, path, 0, CHUNK_BYTES)])
        many = reader.submit([into(pieces, start, path, start, 512) for start in range(0, CHUNK_BYTES, 512)])
        assert one.wait(30)
        assert many.wait(30)
        apart = reader.submit(
            [
                into(pieces, CHUNK_BYTES - 512 - start, path, start, 512)
                for start in range(0, CHUNK_BYTES, 512)
            ]
        )
        assert apart.wait(30)
    assert (one.num_jobs, many.num_jobs, apart.num_jobs) == (1, 1, CHUNK_BYTES // 512)


def test_two_files_and_both_kinds_of_request_go_into_one_ticket(
    path: str, reader: DiskReader, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(CONTENT[::-1])
    buffer, chunks = AlignedBuffer(200), []
    ticket = reader.submit(
        [
            into(buffer, 0, path, 10, 100),
            into(buffer, 100, str(tmp_path / "other"), 110, 100),
            ReadRequest(
                path=path, offset=500, num_bytes=7, deliver=lambda chunk, _: chunks.append(bytes(chunk))
            ),
        ]
    )
    assert ticket.wait(30)
    assert bytes(buffer.buffer) == CONTENT[10:110] + CONTENT[::-1][110:210]
    assert chunks == [CONTENT[500:507]]
    assert ticket.num_bytes == 207


def test_bytes_read_counts_what_reached_the_targets(path: str) -> None:
    buffer, row = AlignedBuffer(100_000), bytearray(11)
    with DiskReader(chunk_bytes=CHUNK_BYTES) as reader:
        reader.submit([into(buffer, 3, path, 5, 70_001)]).wait(30)
        reader.read_now(path, 99, memoryview(row))
        assert reader.bytes_read == 70_001 + 11
    assert bytes(row) == CONTENT[99:110]


def test_congruent_reads_take_no_bounce_buffers_for_chunks(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(CONTENT)
    buffer = AlignedBuffer(FILE_BYTES)
    with DiskReader(num_threads=2, chunk_bytes=256 * 1024) as reader:
        reader.submit([into(buffer, 5, str(tmp_path / "bytes"), 5, FILE_BYTES - 5)]).wait(30)
        assert bounce_bytes(reader) <= 2 * 16 * 1024
    assert bytes(buffer.buffer[5:]) == CONTENT[5:]


def test_a_disk_is_read_past_the_page_cache_by_default(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(CONTENT)
    file = str(tmp_path / "bytes")
    fd = open_direct(file)
    supported = bool(os.O_DIRECT & fcntl.fcntl(fd, fcntl.F_GETFL))
    os.close(fd)
    with DiskReader() as direct, DiskReader(direct=False) as buffered:
        assert uses_direct(direct, file) == supported
        assert not uses_direct(buffered, file)


def test_a_file_system_without_o_direct_is_read_plainly() -> None:
    version = Path("/proc/version").read_bytes()
    buffer = AlignedBuffer(len(version))
    with DiskReader() as reader:
        assert not uses_direct(reader, "/proc/version")
        assert reader.submit([into(buffer, 0, "/proc/version", 0, len(version))]).wait(30)
    assert bytes(buffer.buffer) == version


def test_a_truncated_file_fails_its_ticket_with_the_place_and_not_the_next(tmp_path: Path) -> None:
    short, sound = tmp_path / "short", tmp_path / "sound"
    short.write_bytes(CONTENT)
    sound.write_bytes(CONTENT)
    buffer = AlignedBuffer(FILE_BYTES)
    with DiskReader(chunk_bytes=CHUNK_BYTES) as reader:
        assert reader.submit([into(buffer, 0, str(short), 0, FILE_BYTES)]).wait(30)
        os.truncate(short, 500_001)
        with pytest.raises(ReadFailedError, match="the file ends") as caught:
            reader.submit([into(buffer, 0, str(short), 0, FILE_BYTES)]).wait(30)
        assert caught.value.path == str(short)
        assert 500_001 - CHUNK_BYTES <= caught.value.offset < FILE_BYTES
        assert caught.value.__cause__ is not None
        with pytest.raises(ReadFailedError, match="the file ends"):
            reader.read_now(str(short), 500_000, memoryview(bytearray(2)))
        assert reader.submit([into(buffer, 0, str(sound), 0, FILE_BYTES)]).wait(30)
    assert bytes(buffer.buffer) == CONTENT


@pytest.mark.parametrize("missing_bytes", [1, 100, 5000])
@pytest.mark.parametrize("start", [0, 77])
def test_a_file_that_lacks_a_single_byte_fails_the_ticket(
    missing_bytes: int, start: int, path: str, reader: DiskReader
) -> None:
    buffer = AlignedBuffer(start + 10_000)
    offset = FILE_BYTES - 10_000 + missing_bytes
    with pytest.raises(ReadFailedError, match="the file ends"):
        reader.submit([into(buffer, start, path, offset, 10_000)]).wait(30)


def test_a_missing_file_fails_the_ticket(reader: DiskReader, tmp_path: Path) -> None:
    ticket = reader.submit([into(AlignedBuffer(9), 0, str(tmp_path / "nothing"), 0, 9)])
    with pytest.raises(ReadFailedError, match="nothing") as caught:
        ticket.wait(30)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(ReadFailedError):
        reader.read_now(str(tmp_path / "nothing"), 0, memoryview(bytearray(9)))


def test_a_disk_error_is_chained(path: str) -> None:
    def opener(path: str) -> int:
        # A pipe cannot be read at a position: every read of it fails in the kernel.
        read_end, write_end = os.pipe()
        os.close(write_end)
        return read_end

    with DiskReader(opener=opener) as reader, pytest.raises(ReadFailedError) as caught:
        reader.submit([into(AlignedBuffer(9), 0, path, 3, 9)]).wait(30)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ESPIPE
    assert (caught.value.path, caught.value.offset) == (path, 3)


def test_an_error_in_deliver_is_chained(path: str, reader: DiskReader) -> None:
    def deliver(chunk: memoryview, first_byte: int) -> None:
        raise ZeroDivisionError("in deliver")

    with pytest.raises(ReadFailedError) as caught:
        reader.submit([ReadRequest(path=path, offset=0, num_bytes=9, deliver=deliver)]).wait(30)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_file_is_opened_once_for_the_queue_and_once_for_rows(path: str) -> None:
    opened: list[str] = []

    def opener(path: str) -> int:
        opened.append(path)
        return open_buffered(path)

    buffer = AlignedBuffer(FILE_BYTES)
    with DiskReader(chunk_bytes=CHUNK_BYTES, opener=opener) as reader:
        for _ in range(3):
            assert reader.submit([into(buffer, 0, path, 0, FILE_BYTES)]).wait(30)
            reader.read_now(path, 0, buffer.view(0, 10))
    assert opened == [path, path]
