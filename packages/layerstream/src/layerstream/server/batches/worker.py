"""The one task that works on batches: checks new ones, keeps lines in flight, and ends what is over.

It knows the store and a function that answers a request; it knows neither HTTP nor the model. What it has in
memory is only which lines are in flight, so nothing is lost when it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from .store import BatchStore
from .threads import in_thread
from .values import PendingLine, StoredBatch

Respond = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
"""Answers a request: takes the endpoint and the body, returns the HTTP status and the answer."""

_log = logging.getLogger(__name__)

_TRY_LATER = (429, 503)
_LONGEST_WAIT_S = 60.0  # the clock of the expiry may be set while we wait
_INPUT_CHANGED = (
    "input_file_changed",
    "This line cannot be read from the input file any more; upload it again.",
)
_SERVER_ERROR = ("server_error", "The server had an error while processing this line.")


class BatchWorker:
    """Works on the batches of a store while it is started. All but `notify` belongs to one event loop."""

    def __init__(self, store: BatchStore, respond: Respond) -> None:
        """Use a store and a function.

        Args:
            store: the batches; its settings say how many lines are in flight.
            respond: answers one line. The statuses 429 and 503 mean: not now, ask again later. It is
                cancelled when the worker stops.
        """
        self._store = store
        self._respond = respond
        self._settings = store.settings
        self._in_flight: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._pause_s = 0.0
        self._paused_until = 0.0
        self._not_before: dict[int, float] = {}

    @property
    def num_in_flight(self) -> int:
        """Lines that are being answered."""
        return len(self._in_flight)

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        assert self._task is None, "started twice"
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._task = self._loop.create_task(self._work(), name="batches")

    async def stop(self) -> None:
        """Stop at once; lines in flight are cancelled, and answered after the next start."""
        task, self._task = self._task, None
        if task is None:
            return
        await _cancel(task)
        await _cancel(*self._in_flight.values())
        self._loop = None

    def notify(self) -> None:
        """Look at the store now: a batch is new, or was cancelled. Safe to call from any thread."""
        if self._loop is not None:
            # a loop that has ended needs no waking
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                wait_s = await self._round()
            except (OSError, sqlite3.Error):
                _log.exception("the store of batches cannot be read now; it is tried again")
                wait_s = self._back_off()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, _LONGEST_WAIT_S)):
                    await self._wake.wait()

    async def _round(self) -> float:
        """Do all that can be done now; return after how many seconds there may be more, unless woken."""
        batches = await in_thread(self._store.batches.open)
        for batch in batches:
            await self._advance(batch)
        wait_s = self._paused_until - self._now()
        if wait_s <= 0:
            await self._take_lines()
            wait_s = _LONGEST_WAIT_S
        # one with lines in flight goes on after them, and they wake the worker
        return min([wait_s, *(self._until_next_look(batch) for batch in batches if not self._is_busy(batch))])

    async def _advance(self, batch: StoredBatch) -> None:
        """Check the input of a batch, or end the batch, if it is time for either."""
        if self._is_busy(batch) or self._now() < self._not_before.get(batch.number, 0.0):
            return
        try:
            if batch.status == "validating":
                await in_thread(self._store.batches.validate, batch)
            elif batch.takes_no_line(self._store.clock()):
                await in_thread(self._store.ending.end, batch)
        except Exception:  # noqa: BLE001 - a full disk, say: the other batches go on, and so does the worker
            _log.exception("the batch %s cannot go on now; it is tried again", batch.id)
            self._not_before[batch.number] = self._now() + self._settings.most_retry_s
        else:
            self._not_before.pop(batch.number, None)

    async def _take_lines(self) -> None:
        free = self._settings.lines_in_flight - len(self._in_flight)
        if free <= 0:
            return
        # those in flight are among the first without a result, and one of them may get its result meanwhile
        known = set(self._in_flight)
        found = await in_thread(self._store.lines.pending, self._settings.lines_in_flight)
        for line in [line for line in found if line.key not in known | self._in_flight.keys()][:free]:
            # one after the other, so that the server gets them in their order
            body = await self._read_body(line)
            task = asyncio.create_task(
                self._answer(line, body), name=f"line {line.number} of batch {line.batch}"
            )
            self._in_flight[line.key] = task
            task.add_done_callback(partial(self._has_ended, line.key))

    def _until_next_look(self, batch: StoredBatch) -> float:
        if batch.number in self._not_before:
            return self._not_before[batch.number] - self._now()
        return batch.expires_at - self._store.clock()

    def _is_busy(self, batch: StoredBatch) -> bool:
        return any(number == batch.number for number, _ in self._in_flight)

    def _has_ended(self, key: tuple[int, int], _task: asyncio.Task[None]) -> None:
        del self._in_flight[key]
        self._wake.set()

    async def _read_body(self, line: PendingLine) -> dict[str, Any] | None:
        """Return the request of a line; None if someone has changed the input file."""
        try:
            return await in_thread(self._store.lines.read_body, line)
        except (FileNotFoundError, ValueError):
            return None

    async def _answer(self, line: PendingLine, body: dict[str, Any] | None) -> None:
        """Answer one line and store its result. Without a result, the line is taken again later."""
        try:
            await self._try_to_answer(line, body)
        except (OSError, sqlite3.Error):
            _log.exception("the result of a line cannot be stored now; it is answered again later")
            self._back_off()

    async def _try_to_answer(self, line: PendingLine, body: dict[str, Any] | None) -> None:
        lines = self._store.lines
        if body is None:
            await in_thread(lines.fail, line, *_INPUT_CHANGED)
            return
        try:
            status, response = await self._respond(line.endpoint, body)
        except Exception:  # noqa: BLE001 - whatever one line does to the server, the others go on
            _log.exception("a line of a batch raised an error")
            await in_thread(lines.fail, line, *_SERVER_ERROR)
            return
        if status in _TRY_LATER:
            self._back_off()
            return
        try:
            await in_thread(lines.answer, line, status, response)
        except (TypeError, ValueError):
            _log.exception("the answer to a line of a batch is no JSON")
            await in_thread(lines.fail, line, *_SERVER_ERROR)
        # an answer makes room
        self._pause_s = self._paused_until = 0.0

    def _back_off(self) -> float:
        """Take no lines for a while, each time for longer; return for how long."""
        now = self._now()
        if now >= self._paused_until:
            self._pause_s = min(max(self._settings.retry_s, 2 * self._pause_s), self._settings.most_retry_s)
            self._paused_until = now + self._pause_s
        return self._paused_until - now

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
