"""Clients that ask a server at random, some of which leave; each answer is compared with that given alone."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from functools import partial
from time import monotonic

import httpx
import openai

from serving_steps.clients import Answer, Case, Clients
from serving_steps.server import Resources, Server

AT_ONCE = 40
LEAVE = 0.3
STREAM = 0.5
SETTLE_S = 30.0
LOST_S = 1800.0
"""A request without an answer for so long is lost."""

POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio starts at most so many threads for what would block it, when first needed, and keeps them."""

RETRIES = 10_000
"""Clients do not give up: a server takes long to start on a busy machine, and may be killed again at once."""

_BROKEN = (openai.APIConnectionError, httpx.TransportError)
_LOOK_S = 0.05


class Crowd:
    """Clients that ask at random, and some of which leave.

    Attributes:
        outcomes: how many requests ended how.
        errors: what went wrong, in words.
        num_open: requests that are under way.
        num_broken: streams that broke after their first chunk, and were asked for again.
    """

    def __init__(
        self, clients: Clients, cases: list[Case], alone: list[Answer], *, asks_again: bool = False
    ) -> None:
        """Ask `cases`, whose answers given alone are `alone`; ask again when a connection breaks, or fail."""
        self._clients, self._cases, self._alone = clients, cases, alone
        self._num_retries = RETRIES if asks_again else 0
        self._chance = random.Random(2)
        self._places = asyncio.Semaphore(AT_ONCE)
        self.outcomes: Counter[str] = Counter()
        self.errors: list[str] = []
        self.num_open = self.num_broken = 0

    async def ask_one(self) -> None:
        """Ask one question, and compare what comes."""
        chance = self._chance
        number = chance.randrange(len(self._cases))
        leaves, streams = chance.random() < LEAVE, chance.random() < STREAM
        async with self._places:
            self.num_open += 1
            try:
                async with asyncio.timeout(LOST_S):
                    outcome = await self._outcome(number, leaves=leaves, streams=streams)
            except TimeoutError:
                outcome = "lost"
            except Exception as error:  # noqa: BLE001 - whatever it is, the table shows it
                self.errors.append(f"{type(error).__name__}: {error}"[:300])
                outcome = "failed"
            self.num_open -= 1
        self.outcomes[outcome] += 1

    async def _outcome(self, number: int, *, leaves: bool, streams: bool) -> str:
        case, expected = self._cases[number], self._alone[number]
        if leaves and not streams:
            try:
                async with asyncio.timeout(self._chance.expovariate(1.0)):
                    answer = await self._whole(case)
            except TimeoutError:
                return "left before the answer"
        elif leaves:
            answer = await self._stream(case, expected, self._chance.randint(1, case.new_tokens + 1))
            if answer.num_tokens is None:
                return "left within the answer" if expected.text.startswith(answer.text) else "mixed up"
        elif streams:
            answer = await self._stream(case, expected)
        else:
            answer = await self._whole(case)
        if answer == expected:
            return "answered in a stream" if streams else "answered as a whole"
        self.errors.append(f"{case} gave {answer}, alone {expected}")
        return "mixed up"

    async def _whole(self, case: Case) -> Answer:
        return await self._clients.ask(case, num_retries=self._num_retries)

    async def _stream(self, case: Case, expected: Answer, most_chunks: int | None = None) -> Answer:
        """Ask for a stream, again if it breaks; what came before must begin the answer all the same."""
        ask = partial(self._clients.ask_for_stream, case, most_chunks, num_retries=self._num_retries)
        while True:
            heard: list[str] = []
            try:
                return await ask(heard=heard)
            except _BROKEN:
                if not self._num_retries:
                    raise
                self.num_broken += bool(heard)
                text = "".join(heard)
                if not expected.text.startswith(text):
                    return Answer(text=text)


async def until_idle(clients: Clients) -> dict[str, float]:
    """Return the server's figures once nothing runs or waits, or after `SETTLE_S`."""
    ends_at_s = monotonic() + SETTLE_S
    while True:
        figures = await clients.figures()
        is_idle = not (figures["requests_running"] or figures["requests_waiting"])
        if is_idle or monotonic() > ends_at_s:
            return figures
        await asyncio.sleep(_LOOK_S)


async def settled(server: Server, goal: Resources | None = None) -> Resources:
    """Return what the server holds once that is steady, with no more descriptors than `goal` has."""
    ends_at_s = monotonic() + SETTLE_S
    last = server.resources()
    while monotonic() < ends_at_s:
        await asyncio.sleep(20 * _LOOK_S)
        now = server.resources()
        is_steady = (now.num_threads, now.num_descriptors) == (last.num_threads, last.num_descriptors)
        last = now
        if is_steady and (goal is None or now.num_descriptors <= goal.num_descriptors):
            break
    return last
