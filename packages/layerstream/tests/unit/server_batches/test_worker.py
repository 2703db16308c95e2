"""The worker answers every line once, in order, within its limits, and goes on whatever one line does."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kit.batch_stores import CHAT, StoreKit

from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.values import StoredBatch
from layerstream.server.batches.worker import BatchWorker

QUICK = BatchSettings(lines_in_flight=2, retry_s=0.001, most_retry_s=0.002)


class FakeServer:
    """Answers requests when the test lets it, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.now = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.statuses: dict[str, list[int]] = {}
        self.changed = asyncio.Event()

    async def respond(self, endpoint: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert endpoint == CHAT
        name = body["messages"][0]["content"]
        self.asked.append(name)
        self.now += 1
        self.most = max(self.most, self.now)
        self.changed.set()
        try:
            await self.gate.wait()
        finally:
            self.now -= 1
        status = self.statuses.get(name, []).pop(0) if self.statuses.get(name) else 200
        return status, {"of": name}

    async def until_asked(self, num: int) -> None:
        while len(self.asked) < num:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def working(
    kit: StoreKit, respond: Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
) -> AsyncIterator[BatchWorker]:
    worker = BatchWorker(kit.store, respond)
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def until_ended(kit: StoreKit, *batches: StoredBatch) -> list[StoredBatch]:
    """Return the batches once they have ended; the test's timeout ends a wait for nothing."""
    while True:
        found = [kit.store.batches.get(batch.id) for batch in batches]
        if not any(batch.is_open for batch in found):
            return found
        await asyncio.sleep(0.001)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_batch_is_checked_answered_and_ended(kit: StoreKit) -> None:
    async def work() -> None:
        server = FakeServer()
        kit.reopen(QUICK)
        batch = kit.new_batch(kit.input_bytes([kit.line("a"), kit.line("b")]))
        async with working(kit, server.respond):
            (batch,) = await until_ended(kit, batch)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 2, 0)
        assert [each["response"]["body"] for each in kit.results(batch.output_file_id)] == [
            {"of": "a"},
            {"of": "b"},
        ]

    run(work())


def test_a_batch_that_comes_later_is_noticed(kit: StoreKit) -> None:
    async def work() -> None:
        server = FakeServer()
        async with working(kit, server.respond) as worker:
            first = kit.running_batch("a")
            worker.notify()
            await until_ended(kit, first)
            second = kit.running_batch("b")
            await asyncio.to_thread(worker.notify)
            await until_ended(kit, second)
        assert server.asked == ["a", "b"]

    run(work())


def test_a_bad_input_fails_its_batch_and_the_next_one_goes_on(kit: StoreKit) -> None:
    async def work() -> None:
        bad = kit.new_batch(b"no json")
        good = kit.running_batch("a")
        async with working(kit, FakeServer().respond):
            found = await until_ended(kit, bad, good)
        assert [each.status for each in found] == ["failed", "completed"]

    run(work())


def test_lines_are_taken_in_order_and_so_many_at_a_time(kit: StoreKit) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        server = FakeServer()
        server.gate.clear()
        batches = [kit.running_batch(*"abc"), kit.running_batch(*"de")]
        async with working(kit, server.respond) as worker:
            await server.until_asked(2)
            for _ in range(3):  # nothing more is taken, however often it looks
                worker.notify()
                await asyncio.sleep(0.01)
            assert worker.num_in_flight == server.now == 2
            server.gate.set()
            await until_ended(kit, *batches)
        assert server.asked == list("abcde")
        assert server.most == 2

    run(work())


@pytest.mark.parametrize("busy", [429, 503])
def test_a_line_that_the_server_has_no_room_for_is_tried_again(kit: StoreKit, busy: int) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        server = FakeServer()
        server.statuses = {"a": [busy, busy, busy], "b": [busy]}
        async with working(kit, server.respond):
            (batch,) = await until_ended(kit, kit.running_batch("a", "b"))
        assert (batch.completed, batch.failed) == (2, 0)
        assert sorted(server.asked) == ["a"] * 4 + ["b"] * 2

    run(work())


def test_the_wait_for_room_doubles_up_to_its_limit_and_an_answer_ends_it(kit: StoreKit) -> None:
    async def work() -> None:
        kit.reopen(BatchSettings(retry_s=1.0, most_retry_s=3.0))
        worker = BatchWorker(kit.store, FakeServer().respond)
        now = 100.0
        worker._now = lambda: now  # type: ignore[method-assign]
        waits = []
        for _ in range(4):
            waits.append(worker._back_off())
            assert worker._back_off() == waits[-1]  # a second line in the same moment does not double it
            now += waits[-1]
        assert waits == [1.0, 2.0, 3.0, 3.0]
        (line,) = kit.running_batch("a") and kit.store.lines.pending(1)
        await worker._answer(line, kit.store.lines.read_body(line))
        assert worker._back_off() == 1.0

    run(work())


def test_a_line_that_the_endpoint_refuses_gets_an_error_and_the_others_go_on(kit: StoreKit) -> None:
    async def work() -> None:
        server = FakeServer()
        server.statuses = {"b": [400]}
        async with working(kit, server.respond):
            (batch,) = await until_ended(kit, kit.running_batch(*"abc"))
        assert (batch.status, batch.completed, batch.failed) == ("completed", 2, 1)
        (error,) = kit.results(batch.error_file_id)
        assert (error["custom_id"], error["response"]["status_code"]) == ("b", 400)

    run(work())


@pytest.mark.parametrize("answer", [OSError("no"), ValueError("secret"), None, (200, {"x": float("nan")})])
def test_whatever_goes_wrong_with_a_line_becomes_its_error_without_details(
    kit: StoreKit, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def respond(endpoint: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["messages"][0]["content"] != "b":
            return 200, {}
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def work() -> None:
        async with working(kit, respond):
            (batch,) = await until_ended(kit, kit.running_batch(*"abc"))
        assert (batch.completed, batch.failed) == (2, 1)
        (error,) = kit.results(batch.error_file_id)
        assert (error["custom_id"], error["response"]) == ("b", None)
        assert error["error"] == {
            "code": "server_error",
            "message": "The server had an error while processing this line.",
        }

    run(work())
    assert any(record.exc_info for record in caplog.records)


def test_an_input_that_is_changed_by_hand_fails_its_lines(kit: StoreKit) -> None:
    async def work() -> None:
        batch = kit.running_batch("a", "b")
        path = kit.store.files.path(batch.input_file_id)
        path.write_bytes(path.read_bytes().replace(b'"a"', b"  a"))
        async with working(kit, FakeServer().respond):
            (batch,) = await until_ended(kit, batch)
        (error,) = kit.results(batch.error_file_id)
        assert (error["custom_id"], error["error"]["code"]) == ("a", "input_file_changed")
        assert batch.completed == 1

    run(work())


def test_a_cancelled_batch_takes_no_more_lines_and_waits_for_those_in_flight(kit: StoreKit) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        server = FakeServer()
        server.gate.clear()
        batch = kit.running_batch(*"abcd")
        async with working(kit, server.respond) as worker:
            await server.until_asked(2)
            kit.store.batches.cancel(batch.id)
            worker.notify()
            await asyncio.sleep(0.02)
            assert kit.store.batches.get(batch.id).status == "cancelling"
            server.gate.set()
            (batch,) = await until_ended(kit, batch)
        assert server.asked == ["a", "b"]
        assert (batch.status, batch.completed, batch.failed) == ("cancelled", 2, 2)

    run(work())


def test_an_expired_batch_ends_and_the_next_one_goes_on(kit: StoreKit) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        server = FakeServer()
        server.gate.clear()
        batch = kit.running_batch(*"abc")
        async with working(kit, server.respond) as worker:
            await server.until_asked(2)
            kit.clock.now_s += 24 * 60 * 60
            later = kit.running_batch("z")
            worker.notify()
            server.gate.set()
            batch, later = await until_ended(kit, batch, later)
        assert (batch.status, batch.completed, batch.failed) == ("expired", 2, 1)
        assert later.status == "completed"

    run(work())


def test_the_worker_wakes_by_itself_when_a_batch_expires(kit: StoreKit) -> None:
    async def work() -> None:
        server = FakeServer()
        server.statuses = {"a": [429] * 1_000_000}
        # no line is in flight while the worker waits for room, so nothing but the clock can wake it
        kit.reopen(BatchSettings(retry_s=1_000, most_retry_s=1_000))
        batch = kit.running_batch("a")
        kit.clock.now_s = batch.expires_at - 0.05
        async with working(kit, server.respond):
            await server.until_asked(1)
            kit.clock.now_s = batch.expires_at
            (batch,) = await until_ended(kit, batch)
        assert batch.status == "expired"

    run(work())


def test_lines_in_flight_when_the_worker_stops_are_answered_after_the_next_start(kit: StoreKit) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        server = FakeServer()
        server.gate.clear()
        batch = kit.running_batch(*"abc")
        async with working(kit, server.respond) as worker:
            await server.until_asked(2)
        assert (worker.num_in_flight, server.now) == (0, 0)
        await worker.stop()
        assert kit.store.batches.get(batch.id).num_pending == 3
        server.gate.set()
        kit.reopen()
        async with working(kit, server.respond):
            (batch,) = await until_ended(kit, batch)
        assert sorted(server.asked) == ["a", "a", "b", "b", "c"]
        assert (batch.completed, batch.failed) == (3, 0)

    run(work())


def test_a_worker_that_is_stopped_while_it_stores_a_result_has_stored_it(kit: StoreKit) -> None:
    async def work() -> None:
        batch = kit.running_batch("a")
        is_storing = asyncio.Event()
        loop = asyncio.get_running_loop()
        may_store = threading.Event()
        store_result = kit.store.lines.answer

        def slow_answer(*args: Any) -> bool:
            loop.call_soon_threadsafe(is_storing.set)
            may_store.wait()
            return store_result(*args)

        kit.store.lines.answer = slow_answer  # type: ignore[method-assign]
        async with working(kit, FakeServer().respond) as worker:
            await is_storing.wait()
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0.01)
            assert not stopping.done()
            may_store.set()
            await stopping
        assert kit.store.batches.get(batch.id).completed == 1

    run(work())


def test_a_result_that_the_disk_refuses_is_computed_again(
    kit: StoreKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        server = FakeServer()
        answer = kit.store.lines.answer
        refusals = [
            sqlite3.OperationalError("database or disk is full"),
            OSError(28, "No space left on device"),
        ]

        def refuse_twice(*args: Any) -> bool:
            if refusals:
                raise refusals.pop()
            return answer(*args)

        kit.store.lines.answer = refuse_twice  # type: ignore[method-assign]
        async with working(kit, server.respond):
            (batch,) = await until_ended(kit, kit.running_batch("a"))
        assert (batch.status, batch.completed) == ("completed", 1)
        assert server.asked == ["a"] * 3

    run(work())
    assert "answered again later" in caplog.text


def test_a_batch_that_cannot_be_ended_does_not_hold_up_the_others(
    kit: StoreKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        end = kit.store.ending.end
        first, second = kit.running_batch("a"), kit.running_batch("b")
        may_end = asyncio.Event()
        was_refused = threading.Event()

        def end_later(batch: StoredBatch) -> None:
            if batch.id == first.id and not may_end.is_set():
                was_refused.set()
                raise OSError(28, "No space left on device")
            end(batch)

        kit.store.ending.end = end_later  # type: ignore[method-assign]
        async with working(kit, FakeServer().respond):
            await until_ended(kit, second)
            await asyncio.to_thread(was_refused.wait)
            assert kit.store.batches.get(first.id).is_open
            may_end.set()
            (first,) = await until_ended(kit, first)
        assert first.status == "completed"

    run(work())
    assert "cannot go on now" in caplog.text


def test_a_store_that_cannot_be_read_for_a_while_is_tried_again(
    kit: StoreKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        kit.reopen(QUICK)
        read = kit.store.batches.open
        refusals = [sqlite3.OperationalError("disk I/O error")]

        def refuse_once() -> list[StoredBatch]:
            if refusals:
                raise refusals.pop()
            return read()

        kit.store.batches.open = refuse_once  # type: ignore[method-assign]
        async with working(kit, FakeServer().respond):
            await until_ended(kit, kit.running_batch("a"))

    run(work())
    assert "cannot be read now" in caplog.text


def test_a_worker_that_was_never_started_can_be_told_and_stopped(kit: StoreKit) -> None:
    async def work() -> None:
        worker = BatchWorker(kit.store, FakeServer().respond)
        worker.notify()
        await worker.stop()

    run(work())
    worker = BatchWorker(kit.store, FakeServer().respond)

    async def start_and_leave() -> None:
        worker.start()
        await worker.stop()
        worker.start()
        await worker.stop()

    run(start_and_leave())
    worker.notify()
