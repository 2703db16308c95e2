"""A fake server behind a worker of batches.

Test kit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

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
