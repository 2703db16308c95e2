"""The reader's tickets: served in order, waited for, cancelled, closed; each one ends, and ends once."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable

import pytest
from kit.random_file import CHUNK_BYTES, FILE_BYTES, GUARD, guarded, into

from layerstream.checkpoint.buffers import AlignedBuffer
from layerstream.checkpoint.reader import DiskReader, ReadRequest, ReadTicket
from layerstream.errors import StreamClosedError


def one_byte(path: str, deliver: Callable[[memoryview, int], None] = lambda *_: None) -> ReadRequest:
    return ReadRequest(path=path, offset=0, num_bytes=1, deliver=deliver)


def held_until(gate: threading.Event, path: str) -> ReadRequest:
    """Return a request that keeps its reader's thread busy until `gate` is set."""

    def deliver(chunk: memoryview, first_byte: int) -> None:
        assert gate.wait(30)

    return one_byte(path, deliver)


def test_tickets_are_served_in_order_of_submission(path: str) -> None:
    order: list[int] = []
    gate = threading.Event()
    buffer = AlignedBuffer(10 * CHUNK_BYTES)
    with DiskReader(num_threads=1, chunk_bytes=CHUNK_BYTES) as reader:
        reader.submit([held_until(gate, path)])
        tickets = [
            reader.submit(
                [into(buffer, 0, path, number, 5 * CHUNK_BYTES)],
                on_done=lambda _, number=number: order.append(number),  # type: ignore[misc]
            )
            for number in range(5)
        ]
        gate.set()
        assert all(ticket.wait(30) for ticket in tickets)
    assert order == [0, 1, 2, 3, 4]
    assert all(0 < ticket.started_s <= ticket.ended_s for ticket in tickets)
    assert all(one.ended_s <= two.started_s for one, two in itertools.pairwise(tickets))


def test_wait_returns_false_after_its_timeout(path: str) -> None:
    gate = threading.Event()
    with DiskReader() as reader:
        ticket = reader.submit([held_until(gate, path)])
        assert not ticket.wait(0.01)
        assert not ticket.done
        gate.set()
        assert ticket.wait(30)


def test_an_empty_ticket_is_done_at_once_and_calls_nobody(path: str) -> None:
    calls: list[ReadTicket] = []
    with DiskReader() as reader:
        for requests in (
            [],
            [ReadRequest(path=path, offset=7, num_bytes=0, target=memoryview(bytearray()), address=0)],
        ):
            ticket = reader.submit(requests, on_done=calls.append)
            assert ticket.done
            assert ticket.wait(0)
    assert not calls


def test_a_callback_is_called_once_and_its_error_does_not_stop_the_thread(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    gate, calls = threading.Event(), []

    def callback(ticket: ReadTicket) -> None:
        calls.append(threading.current_thread().name)
        raise ValueError("from the callback")

    with DiskReader(num_threads=1) as reader:
        reader.submit([held_until(gate, path)], on_done=callback)
        gate.set()
        assert reader.submit([one_byte(path)]).wait(30)
    assert calls == ["layerstream-read-0"]
    assert [str(error) for error in reported] == ["from the callback"]


def test_a_cancelled_ticket_ends_without_touching_its_targets_afterwards(path: str) -> None:
    gate = threading.Event()
    buffer = guarded(FILE_BYTES)
    with DiskReader(num_threads=1) as reader:
        reader.submit([held_until(gate, path)])
        ticket = reader.submit([into(buffer, 0, path, 0, FILE_BYTES)])
        ticket.cancel()
        assert not ticket.done
        gate.set()
        with pytest.raises(StreamClosedError, match="cancelled"):
            ticket.wait(30)
        assert reader.submit([one_byte(path)]).wait(30)
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
        assert gate.wait(30)

    held = reader.submit([one_byte(path, deliver)])
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
    tickets = [
        reader.submit([into(buffer, 0, path, number, 30_000)], on_done=lambda _: finished.release())
        for number in range(60)
    ]
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
    ]
    for use in uses:
        with pytest.raises(StreamClosedError):
            use()


def test_closing_from_a_callback_does_not_wait_for_itself(path: str) -> None:
    reader = DiskReader(num_threads=2)
    closed = threading.Event()

    def close(_: ReadTicket) -> None:
        reader.close()
        closed.set()

    reader.submit([into(AlignedBuffer(9), 0, path, 0, 9)], on_done=close)
    assert closed.wait(30)
