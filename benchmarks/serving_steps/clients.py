"""Ask a server as programs do: OpenAI's own client, and httpx where the bytes on the line count."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from serving_steps.server import MODEL_NAME

PATIENCE_S = 600.0
CHAT: Final = "/v1/chat/completions"
_FIGURE = re.compile(r"^layerstream_(\w+) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question.

    Attributes:
        prompt: the user's turn.
        new_tokens: the most tokens of the answer.
        seed: samples with it; None takes the likeliest tokens.
    """

    prompt: str
    new_tokens: int
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        """Return the fields of a chat request."""
        fields: dict[str, Any] = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.new_tokens,
        }
        return fields if self.seed is None else {**fields, "temperature": 1.0, "seed": self.seed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, as far as a client has read it."""

    text: str
    num_tokens: int | None = None
    finish_reason: str | None = None


class Clients:
    """Clients of one server.

    Attributes:
        openai: OpenAI's.
        http: a plain one.
    """

    def __init__(self, openai: AsyncOpenAI, http: httpx.AsyncClient) -> None:
        """Use both."""
        self.openai, self.http = openai, http

    async def figures(self) -> dict[str, float]:
        """Return the server's figures without labels, by their names without `layerstream_`."""
        text = (await self.http.get("/metrics")).raise_for_status().text
        return {name: float(value) for name, value in _FIGURE.findall(text)}

    async def ask(self, case: Case, *, num_retries: int = 0) -> Answer:
        """Return the answer as a whole; OpenAI's client asks again if the connection breaks."""
        found = await self.openai.with_options(max_retries=num_retries).chat.completions.create(**case.body())
        assert found.usage is not None
        (choice,) = found.choices
        return Answer(
            text=choice.message.content or "",
            num_tokens=found.usage.completion_tokens,
            finish_reason=choice.finish_reason,
        )

    async def ask_for_stream(
        self,
        case: Case,
        most_chunks: int | None = None,
        *,
        heard: list[str] | None = None,
        num_retries: int = 0,
    ) -> Answer:
        """Return the answer as it streams; leave after `most_chunks` chunks, if that is given.

        Args:
            case: the question.
            most_chunks: how many chunks to wait for.
            heard: gets each text as it comes, for a stream that may break.
            num_retries: how often OpenAI's client asks again if there is no connection.
        """
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        text, num_tokens, reason = "", None, None
        heard = [] if heard is None else heard
        client = self.openai.with_options(max_retries=num_retries)
        stream = await client.chat.completions.create(**case.body(), **options)
        async with stream:
            num_chunks = 0
            async for chunk in stream:
                num_chunks += 1
                if chunk.usage is not None:
                    num_tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    heard.append(choice.delta.content or "")
                    text += heard[-1]
                    reason = choice.finish_reason or reason
                if num_chunks == most_chunks:
                    break
        return Answer(text=text, num_tokens=num_tokens, finish_reason=reason)


@asynccontextmanager
async def clients_of(address: str) -> AsyncIterator[Clients]:
    """Yield clients of the server at an address, which use no proxy."""
    async with (
        httpx.AsyncClient(base_url=address, timeout=PATIENCE_S, trust_env=False) as http,
        DefaultAsyncHttpxClient(timeout=PATIENCE_S, trust_env=False) as line,
    ):
        openai = AsyncOpenAI(
            base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S, http_client=line
        )
        yield Clients(openai, http)
