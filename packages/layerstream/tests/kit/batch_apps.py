"""An app with files and batches, in this process, and clients of it.

Test kit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI

from kit.batch_stores import StoreKit
from layerstream.server.batches.errors import BatchApiError
from layerstream.server.batches.routes import build_router
from layerstream.server.batches.worker import BatchWorker


@dataclass
class Clients:
    """OpenAI's client and a plain one, on the same app, and the worker behind it."""

    openai: AsyncOpenAI
    plain: httpx.AsyncClient
    worker: BatchWorker


async def echo(endpoint: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer at once; refuse what has no messages."""
    if "messages" not in body:
        return 400, {"error": {"message": "no messages", "type": "invalid_request_error"}}
    return 200, {"object": "chat.completion", "of": body["messages"][0]["content"]}


def build_app(kit: StoreKit, worker: BatchWorker) -> FastAPI:
    app = FastAPI()
    app.include_router(build_router(kit.store, worker, kit.settings))

    @app.exception_handler(BatchApiError)
    async def refuse(request: Request, error: BatchApiError) -> JSONResponse:
        content = {
            "message": error.message,
            "type": "invalid_request_error",
            "param": error.param,
            "code": error.code,
        }
        return JSONResponse({"error": content}, status_code=error.status)

    return app


@asynccontextmanager
async def serving(kit: StoreKit, *, is_working: bool = True) -> AsyncIterator[Clients]:
    """Run the app in this process; clients reach it without a socket."""
    worker = BatchWorker(kit.store, echo)
    transport = httpx.ASGITransport(app=build_app(kit, worker))
    if is_working:
        worker.start()
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://server/v1") as plain,
        AsyncOpenAI(
            api_key="none",
            base_url="http://server/v1",
            http_client=httpx.AsyncClient(transport=transport),
            max_retries=0,
        ) as client,
    ):
        try:
            yield Clients(client, plain, worker)
        finally:
            await worker.stop()


def run(kit: StoreKit, work: Callable[[Clients], Awaitable[None]], *, is_working: bool = True) -> None:
    async def main() -> None:
        async with serving(kit, is_working=is_working) as clients:
            await work(clients)

    asyncio.run(main())


async def until_ended(clients: Clients, batch_id: str) -> openai.types.Batch:
    while (batch := await clients.openai.batches.retrieve(batch_id)).status in (
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        await asyncio.sleep(0.001)
    return batch
