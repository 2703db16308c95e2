"""Whatever goes wrong below the worker or in one line, it goes on, and every line still gets one result."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from kit.batch_server import QUICK, FakeServer, until_ended, working
from kit.batch_stores import StoreKit

from layerstream.server.batches.values import StoredBatch


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


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
