"""The parallel reader: every byte lands in its place, nothing else is touched, and everything ends."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstream.checkpoint.buffers import AlignedBuffer
from layerstream.checkpoint.files import open_buffered, open_direct
from layerstream.checkpoint.reader import DiskReader, ReadRequest
from layerstream.errors import ReadFailedError, StreamClosedError

FILE_BYTES = 1_000_003
CHUNK_BYTES = 16 * 1024
CONTENT = np.random.default_rng(0).integers(0, 256, FILE_BYTES, dtype=np.uint8).tobytes()
GUARD = 0xA5


@pytest.fixture(scope="module", params=["disk", "tmpfs"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A file of random bytes whose length is not a multiple of any alignment."""
    if request.param == "tmpfs" and not os.path.isdir("/dev/shm"):
        pytest.skip("no tmpfs here")
    folder = (
        Path(tempfile.mkdtemp(dir="/dev/shm"))
        if request.param == "tmpfs"
        else tmp_path_factory.mktemp("reader")
    )
    (folder / "bytes").write_bytes(CONTENT)
    yield str(folder / "bytes")
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "buffered"])
def reader(request: pytest.FixtureRequest) -> Iterator[DiskReader]:
    """A reader whose chunks are small, so that most reads consist of several."""
    with DiskReader(num_threads=3, chunk_bytes=CHUNK_BYTES, direct=request.param) as reader:
        yield reader


def into(buffer: AlignedBuffer, start: int, path: str, offset: int, num_bytes: int) -> ReadRequest:
    target = buffer.view(start, num_bytes)
    return ReadRequest(
        path=path, offset=offset, num_bytes=num_bytes, target=target, address=buffer.address + start
    )


def guarded(num_bytes: int) -> AlignedBuffer:
    buffer = AlignedBuffer(num_bytes)
    buffer.buffer[:] = bytes([GUARD]) * num_bytes
    return buffer


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
        assert reader.bounce_bytes <= 2 * 16 * 1024
    assert bytes(buffer.buffer[5:]) == CONTENT[5:]


def test_a_disk_is_read_past_the_page_cache_by_default(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(CONTENT)
    file = str(tmp_path / "bytes")
    fd = open_direct(file)
    supported = bool(os.O_DIRECT & fcntl.fcntl(fd, fcntl.F_GETFL))
    os.close(fd)
    with DiskReader() as direct, DiskReader(direct=False) as buffered:
        assert direct.uses_direct(file) == supported
        assert not buffered.uses_direct(file)


def test_a_file_system_without_o_direct_is_read_plainly() -> None:
    version = Path("/proc/version").read_bytes()
    buffer = AlignedBuffer(len(version))
    with DiskReader() as reader:
        assert not reader.uses_direct("/proc/version")
        assert reader.submit([into(buffer, 0, "/proc/version", 0, len(version))]).wait(30)
    assert bytes(buffer.buffer) == version


def test_tickets_are_served_in_order_of_submission(path: str) -> None:
    order: list[int] = []
    gate = threading.Event()
    buffer = AlignedBuffer(10 * CHUNK_BYTES)
    with DiskReader(num_threads=1, chunk_bytes=CHUNK_BYTES) as reader:
        reader.submit([ReadRequest(path=path, offset=0, num_bytes=1, deliver=lambda *_: assert_set(gate))])
        tickets = [reader.submit([into(buffer, 0, path, number, 5 * CHUNK_BYTES)]) for number in range(5)]
        for number, ticket in enumerate(tickets):
            ticket.on_done(lambda number=number: order.append(number))  # type: ignore[misc]
        gate.set()
        assert all(ticket.wait(30) for ticket in tickets)
    assert order == [0, 1, 2, 3, 4]
    assert all(0 < ticket.started_s <= ticket.ended_s for ticket in tickets)
    assert all(one.ended_s <= two.started_s for one, two in itertools.pairwise(tickets))


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(30)


def test_wait_returns_false_after_its_timeout(path: str) -> None:
    gate = threading.Event()
    with DiskReader() as reader:
        ticket = reader.submit(
            [ReadRequest(path=path, offset=0, num_bytes=1, deliver=lambda *_: assert_set(gate))]
        )
        assert not ticket.wait(0.01)
        assert not ticket.done
        gate.set()
        assert ticket.wait(30)


def test_an_empty_ticket_is_done_at_once_and_calls_back(path: str) -> None:
    calls: list[str] = []
    with DiskReader() as reader:
        for requests in (
            [],
            [ReadRequest(path=path, offset=7, num_bytes=0, target=memoryview(bytearray()), address=0)],
        ):
            ticket = reader.submit(requests)
            ticket.on_done(lambda: calls.append("done"))
            assert ticket.done
            assert ticket.wait(0)
    assert calls == ["done", "done"]


def test_a_callback_is_called_once_and_its_error_does_not_stop_the_thread(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    gate, calls, second = threading.Event(), [], threading.Event()

    def callback() -> None:
        calls.append(threading.current_thread().name)
        raise ValueError("from the callback")

    with DiskReader(num_threads=1) as reader:
        ticket = reader.submit(
            [ReadRequest(path=path, offset=0, num_bytes=1, deliver=lambda *_: assert_set(gate))]
        )
        ticket.on_done(callback)
        ticket.on_done(second.set)
        gate.set()
        assert second.wait(30)
        assert reader.submit([ReadRequest(path=path, offset=0, num_bytes=1, deliver=lambda *_: None)]).wait(
            30
        )
    assert calls == ["layerstream-read-0"]
    assert [str(error) for error in reported] == ["from the callback"]


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


def test_a_cancelled_ticket_ends_without_touching_its_targets_afterwards(path: str) -> None:
    gate = threading.Event()
    buffer = guarded(FILE_BYTES)
    with DiskReader(num_threads=1) as reader:
        reader.submit([ReadRequest(path=path, offset=0, num_bytes=1, deliver=lambda *_: assert_set(gate))])
        ticket = reader.submit([into(buffer, 0, path, 0, FILE_BYTES)])
        ticket.cancel()
        assert not ticket.done
        gate.set()
        with pytest.raises(StreamClosedError, match="cancelled"):
            ticket.wait(30)
        assert reader.submit([ReadRequest(path=path, offset=0, num_bytes=1, deliver=lambda *_: None)]).wait(
            30
        )
    assert set(bytes(buffer.buffer)) == {GUARD}


def test_cancelling_a_done_ticket_changes_nothing(path: str, reader: DiskReader) -> None:
    ticket = reader.submit([into(AlignedBuffer(9), 0, path, 0, 9)])
    assert ticket.wait(30)
    ticket.cancel()
    assert ticket.wait(30)


def test_closing_early_fails_unfinished_tickets_and_stops_every_thread(path: str) -> None:
    buffer = AlignedBuffer(FILE_BYTES)
    before = set(os.listdir("/proc/self/fd"))
    reader = DiskReader(num_threads=1, chunk_bytes=CHUNK_BYTES)
    began, gate = threading.Event(), threading.Event()

    def deliver(chunk: memoryview, first_byte: int) -> None:
        began.set()
        assert_set(gate)

    held = reader.submit([ReadRequest(path=path, offset=0, num_bytes=1, deliver=deliver)])
    tickets = [reader.submit([into(buffer, 0, path, 0, FILE_BYTES)]) for _ in range(50)]
    assert began.wait(30)
    closing = threading.Thread(target=reader.close)
    closing.start()
    while tickets[-1].error is None:  # The only thread is blocked until close() has failed the tickets.
        closing.join(0.001)
    gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert held.done
    assert all(ticket.done for ticket in tickets)
    with pytest.raises(StreamClosedError, match="closed"):
        tickets[-1].wait(0)
    assert not [thread for thread in reader._threads if thread.is_alive()]
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("num_finished", range(0, 60, 7))
def test_closing_at_any_moment_ends_every_ticket(num_finished: int, path: str) -> None:
    buffer = AlignedBuffer(FILE_BYTES)
    finished = threading.Semaphore(0)
    reader = DiskReader(num_threads=4, chunk_bytes=CHUNK_BYTES)
    tickets = [reader.submit([into(buffer, 0, path, number, 30_000)]) for number in range(60)]
    for ticket in tickets:
        ticket.on_done(finished.release)
    for _ in range(num_finished):
        assert finished.acquire(timeout=30)
    reader.close()
    assert all(ticket.done for ticket in tickets)


def test_a_closed_reader_refuses_requests_and_can_be_closed_again(path: str) -> None:
    reader = DiskReader()
    reader.close()
    reader.close()
    uses: list[Callable[[], object]] = [
        lambda: reader.submit([]),
        lambda: reader.read_now(path, 0, memoryview(bytearray(1))),
        lambda: reader.uses_direct(path),
    ]
    for use in uses:
        with pytest.raises(StreamClosedError):
            use()


def test_closing_from_a_callback_does_not_wait_for_itself(path: str) -> None:
    reader = DiskReader(num_threads=2)
    closed = threading.Event()
    ticket = reader.submit([into(AlignedBuffer(9), 0, path, 0, 9)])

    def close() -> None:
        reader.close()
        closed.set()

    ticket.on_done(close)
    assert closed.wait(30)


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
