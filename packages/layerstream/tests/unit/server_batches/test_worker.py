"""The worker answers every line once, in order, within its limits, and goes on whatever one line does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from kit.batch_server import QUICK, FakeServer, until_ended, working
from kit.batch_stores import StoreKit

from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.worker import BatchWorker


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
            kit.clock.now_s += BatchSettings().expires_after_s
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
