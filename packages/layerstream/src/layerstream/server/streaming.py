"""Answers as server-sent events: chunks, comments while nothing comes, and `[DONE]`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from ..uses.serving.events import AnswerEnded, AnswerPart, PromptScored
from .errors import ApiError
from .feed import AnswerFeed
from .settings import ServerSettings
from .shapes import Shape

_SEPARATOR = "\n"


class AnswerStream(EventSourceResponse):
    """The answers of a feed as they come. Cancels what has not ended, however the response ends.

    The first comment follows the headers at once, so that a client sees its place in the queue, and another
    one comes whenever nothing else has come for a while, so that nothing on the way gives the connection up.
    """

    def __init__(self, feed: AnswerFeed, shape: Shape, settings: ServerSettings) -> None:
        """Stream the answers of `feed` in a shape."""
        super().__init__(
            stream_events(feed, shape),
            headers={**feed.headers(), "X-Accel-Buffering": "no"},
            sep=_SEPARATOR,
            ping=settings.keep_alive_s,
            ping_message_factory=lambda: _comment(feed),
            send_timeout=settings.send_s,
        )
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            # the client takes nothing: it is gone, and nobody is left to tell
            return
        finally:
            self._feed.cancel()


async def stream_events(feed: AnswerFeed, shape: Shape) -> AsyncIterator[ServerSentEvent]:
    """Yield the events of a stream, up to `[DONE]`. An error ends it with the error as its last chunk."""
    yield _comment(feed)
    streamed: dict[int, str] = {}
    num_tokens, reused = 0, dict[int, int]()
    try:
        async for answer, event in feed.events():
            for chunk in _chunks(shape, answer, event, streamed):
                yield _data(chunk)
            if isinstance(event, AnswerEnded):
                num_tokens += 0 if shape.is_prompt_only else len(event.result.tokens)
                reused[answer] = event.reused_tokens
            # many events may be ready at once, and others have their turn between two of them
            await asyncio.sleep(0)
    except ApiError as error:
        yield ServerSentEvent(data=json.dumps(error.body()), sep=_SEPARATOR)
    else:
        if feed.prepared.body.has_usage_chunk:
            yield _data(shape.usage_chunk(num_tokens, [reused[number] for number in sorted(reused)]))
    yield ServerSentEvent(data="[DONE]", sep=_SEPARATOR)


def _chunks(
    shape: Shape, answer: int, event: PromptScored | AnswerPart | AnswerEnded, streamed: dict[int, str]
) -> list[BaseModel]:
    """Return the chunks that an event makes, and note the text that they send."""
    chunks: list[BaseModel] = []
    if answer not in streamed:
        streamed[answer] = ""
        first = shape.first_chunk(answer, event.chances if isinstance(event, PromptScored) else ())
        chunks += [] if first is None else [first]
    if isinstance(event, PromptScored):
        return chunks
    if shape.is_prompt_only:
        return [*chunks, shape.end_chunk(answer, "length")] if isinstance(event, AnswerEnded) else chunks
    if isinstance(event, AnswerPart):
        if event.text or event.chances:
            chunks.append(shape.part_chunk(answer, event.text, event.chances))
            streamed[answer] += event.text
        return chunks
    whole, sent = event.result.text or "", streamed[answer]
    if whole != sent and whole.startswith(sent):
        # what no part has brought
        chunks.append(shape.part_chunk(answer, whole.removeprefix(sent), ()))
    chunks.append(shape.end_chunk(answer, event.result.finish_reason))
    return chunks


def _data(chunk: BaseModel) -> ServerSentEvent:
    # the types know no chance that is null, which the first token of a scored prompt has
    return ServerSentEvent(data=chunk.model_dump_json(exclude_unset=True, warnings=False), sep=_SEPARATOR)


def _comment(feed: AnswerFeed) -> ServerSentEvent:
    return ServerSentEvent(comment=feed.comment(), sep=_SEPARATOR)
