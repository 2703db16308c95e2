"""Answer a body of the API without HTTP; the routes and the batches use it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..uses.serving.events import AnswerEnded, PromptScored, TokenChance
from ..uses.serving.protocol import Service
from .errors import ApiError, api_error
from .feed import AnswerFeed
from .model_card import model_id
from .requests import prepare_chat, prepare_completion
from .settings import ServerSettings
from .shapes import Shape, WholeAnswer, shape_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_PREPARE = {CHAT: prepare_chat, COMPLETIONS: prepare_completion}
_DEFAULTS = ServerSettings()


async def answer(
    service: Service, endpoint: str, body: Mapping[str, Any], *, settings: ServerSettings = _DEFAULTS
) -> tuple[int, dict[str, Any]]:
    """Answer a body; cancels its requests when it is cancelled itself.

    Args:
        service: what answers.
        endpoint: `"/v1/chat/completions"` or `"/v1/completions"`.
        body: the fields of the body; `stream` cannot be true.
        settings: the limits.

    Returns:
        The HTTP status and the body of the answer, or of the error in OpenAI's shape. An error that nobody
        foresaw is logged and has the status 500.
    """
    try:
        if endpoint not in _PREPARE:
            raise ApiError(f"The address must be {CHAT} or {COMPLETIONS}.", status=404)
        if body.get("stream"):
            raise ApiError("stream cannot be true here: leave it out.", param="stream")
        feed = await open_feed(service, endpoint, body, settings)
        return 200, await whole_answer(feed, shape_for(feed, service, settings))
    except ApiError as error:
        return error.status, error.body()
    except Exception as error:  # noqa: BLE001 - one body of many must not end the others
        unforeseen = api_error(error)
        return unforeseen.status, unforeseen.body()


async def open_feed(
    service: Service, endpoint: str, fields: Mapping[str, Any], settings: ServerSettings
) -> AnswerFeed:
    """Check a body and put its requests into the queue.

    Raises:
        ApiError: the body is wrong, the queue is full, or the service is closed.
    """
    # a long prompt takes long to encode, and the loop serves others meanwhile
    prepared = await asyncio.to_thread(_PREPARE[endpoint], service, settings, fields)
    return AnswerFeed(service, prepared)


def shape_for(feed: AnswerFeed, service: Service, settings: ServerSettings) -> Shape:
    """Return the shape of the answers that a feed brings."""
    return shape_of(feed.prepared, service.tokenizer, model_id(service, settings))


async def whole_answer(feed: AnswerFeed, shape: Shape) -> dict[str, Any]:
    """Wait for all answers and return them in one body. Cancels what has not ended, however it ends.

    Raises:
        ApiError: one of the answers failed.
    """
    num_answers = len(feed.prepared.requests)
    chances: list[list[TokenChance]] = [[] for _ in range(num_answers)]
    prompt_chances: dict[int, tuple[TokenChance, ...]] = {}
    ended: dict[int, AnswerEnded] = {}
    try:
        async for number, event in feed.events():
            if isinstance(event, AnswerEnded):
                ended[number] = event
            elif isinstance(event, PromptScored):
                prompt_chances[number] = event.chances
            else:
                chances[number] += event.chances
    finally:
        feed.cancel()
    answers = [
        WholeAnswer(
            text=ended[number].result.text or "",
            num_tokens=len(ended[number].result.tokens),
            reused_tokens=ended[number].reused_tokens,
            finish_reason=ended[number].result.finish_reason,
            chances=chances[number],
            prompt_chances=prompt_chances.get(number, ()),
        )
        for number in range(num_answers)
    ]
    # the types know no chance that is null, which the first token of a scored prompt has
    return shape.whole(answers).model_dump(mode="json", exclude_unset=True, warnings=False)
