"""The events of one body's requests, brought from the service's thread into an event loop.

Events arrive in a thread of the service and are handed over to the loop. The queue between the two has no
limit: an answer has no more events than tokens, and those are limited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

from ..uses.serving.events import AnswerEnded, AnswerEvent, AnswerPart, PromptScored
from ..uses.serving.protocol import Service, Ticket
from .errors import api_error, closing
from .requests import PreparedBody


class AnswerFeed:
    """The tickets of one body, and their events as they come. Belongs to one event loop."""

    def __init__(self, service: Service, prepared: PreparedBody) -> None:
        """Put all requests of a body into the queue, or none of them.

        Raises:
            ApiError: the queue is full, the service is closed, or a request can never fit.
        """
        self.prepared = prepared
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, AnswerEvent]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._has_begun = False
        try:
            for answer, request in enumerate(prepared.requests):
                hand_over = partial(self._hand_over, answer)
                top = prepared.body.num_top_logprobs
                scores = prepared.body.scores_prompt
                ticket = service.submit(request, hand_over, top_logprobs=top, scores_prompt=scores)
                self._tickets.append(ticket)
        except Exception as error:  # whatever it is, the requests before it must not run for nobody
            self.cancel()
            raise api_error(error) from error

    def cancel(self) -> None:
        """Cancel what has not ended; does nothing to what has."""
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, PromptScored | AnswerPart | AnswerEnded]]:
        """Yield the scored prompts, parts and ends of all answers, each with the answer's number.

        Raises:
            ApiError: one of the answers failed.
        """
        running = len(self._tickets)
        while running:
            answer, event = await self._events.get()
            if isinstance(event, AnswerEnded):
                running -= 1
                if event.result.error is not None:
                    raise api_error(event.result.error) from event.result.error
                if event.is_cancelled:
                    # nobody here cancels and goes on reading: the service has closed
                    raise closing()
                yield answer, event
            elif isinstance(event, (PromptScored, AnswerPart)):
                self._has_begun = True
                yield answer, event

    def headers(self) -> dict[str, str]:
        """Return where the requests wait now and for how long: the one that answers first counts."""
        position, wait_s = self._wait()
        return {"X-Queue-Position": str(position), "X-Estimated-Wait-Seconds": f"{wait_s:.1f}"}

    def comment(self) -> str:
        """Return in words where the requests are now."""
        pace = self._service.status().tokens_per_s
        words = [f"{pace:.2g} tokens/s"] if pace else []
        if not self._has_begun:
            position, wait_s = self._wait()
            place = f"queue position {position}" if position else "running"
            wait = f"about {wait_s:.0f} s" if wait_s >= 1 else "less than 1 s"
            words = [place, f"{wait} until the first token", *words]
        return ", ".join(words) or "running"

    def _wait(self) -> tuple[int, float]:
        """Return the place in the queue, and the seconds until the first token, of whichever is first."""
        positions = (ticket.position for ticket in self._tickets)
        return min(positions), min(ticket.first_token_eta_s for ticket in self._tickets)

    def _hand_over(self, answer: int, event: AnswerEvent) -> None:
        # a closed loop has nobody left who reads
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (answer, event))
