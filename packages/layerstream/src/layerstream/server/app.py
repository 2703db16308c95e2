"""The app: OpenAI's addresses over one service.

Knows HTTP and the interface of a service; knows no model, no sweep and no thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from ..uses.serving.protocol import Service
from .answering import CHAT, COMPLETIONS, open_feed, shape_for, whole_answer
from .bodies import parse_json
from .errors import ApiError, add_error_handlers
from .guards import HEALTH, METRICS, Guard, OpenRequests
from .metrics import CLIENT_GONE, RequestCounter, ServiceCollector
from .model_card import model_card, model_id
from .settings import ServerSettings
from .streaming import AnswerStream

_TOLD_HEADERS = ("X-Queue-Position", "X-Estimated-Wait-Seconds", "Retry-After")


def build_app(
    service: Service, *, settings: ServerSettings, batches_router: APIRouter | None = None
) -> FastAPI:
    """Return the app of a service. It starts nothing and closes nothing.

    Args:
        service: what answers.
        settings: the limits.
        batches_router: further routes, for files and batches; the guards stand before them too.

    Returns:
        The app; `app.state.open_requests` is its `OpenRequests`.
    """
    settings = replace(settings, model_id=model_id(service, settings))
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    open_requests = OpenRequests(settings.max_open_requests)
    # no page of documentation: it would load its scripts from elsewhere
    app = FastAPI(title="layerstream", openapi_url=None, redirect_slashes=False)
    app.state.open_requests = open_requests
    add_error_handlers(app)
    app.include_router(_status_routes(service, settings, registry, open_requests))
    app.include_router(_answer_routes(service, settings))
    if batches_router is not None:
        app.include_router(batches_router)
    app.add_middleware(Guard, settings=settings, open_requests=open_requests)
    if settings.origins:
        # a browser asks before it sends a key, so this stands before the guard
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_TOLD_HEADERS,
        )
    app.add_middleware(RequestCounter, registry=registry)
    return app


def _status_routes(
    service: Service, settings: ServerSettings, registry: CollectorRegistry, open_requests: OpenRequests
) -> APIRouter:
    router = APIRouter()
    created = int(time.time())

    @router.get(HEALTH)
    async def health() -> Response:
        if open_requests.is_draining:
            return JSONResponse({"status": "closing"}, 503)
        return JSONResponse({"status": "ok"})

    @router.get(METRICS)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def card() -> dict[str, Any]:
        return model_card(service, settings, created).model_dump(mode="json", exclude_unset=True)

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != settings.model_id:
            raise ApiError(
                f"There is no model {name[:80]!r}; this server serves {settings.model_id!r}.",
                status=404,
                param="model",
                code="model_not_found",
            )
        return JSONResponse(card())

    return router


def _answer_routes(service: Service, settings: ServerSettings) -> APIRouter:
    router = APIRouter()

    @router.post(CHAT)
    async def chat(request: Request) -> Response:
        return await _respond(request, CHAT, service, settings)

    @router.post(COMPLETIONS)
    async def completions(request: Request) -> Response:
        return await _respond(request, COMPLETIONS, service, settings)

    return router


async def _respond(request: Request, endpoint: str, service: Service, settings: ServerSettings) -> Response:
    try:
        raw = await request.body()
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    feed = await open_feed(service, endpoint, parse_json(raw), settings)
    shape = shape_for(feed, service, settings)
    if feed.prepared.body.stream:
        return AnswerStream(feed, shape, settings)
    headers = feed.headers()
    try:
        body = await _unless_gone(request.receive, whole_answer(feed, shape))
    finally:
        # also if the client was gone before the first step
        feed.cancel()
    return Response(status_code=CLIENT_GONE) if body is None else JSONResponse(body, headers=headers)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any] | None:
    """Return what `work` returns; None, with the work cancelled, if the client leaves before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
