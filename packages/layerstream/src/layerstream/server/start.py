"""Serve one streamed model: the service, the batches and the app, put together and taken apart again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse

from ..model import StreamedModel
from ..uses.serving.service import MOST_WAITING, GenerationService
from .answering import answer
from .app import build_app
from .batches.errors import BatchApiError
from .batches.routes import build_router
from .batches.settings import BatchSettings
from .batches.store import BatchStore
from .batches.worker import BatchWorker
from .errors import ApiError
from .model_card import model_id
from .run import ServingOptions, serve
from .settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is served.

    Attributes:
        host: the address to listen on.
        port: the port; 0 takes any that is free.
        folder: where files and batches are kept, which survive the end of the server.
        most_waiting: how many requests may wait.
        settings: the limits of requests.
        connections: the limits of connections.
        batches: the limits of files and batches.
    """

    host: str
    port: int
    folder: Path
    most_waiting: int = MOST_WAITING
    settings: ServerSettings
    connections: ServingOptions
    batches: BatchSettings


def serve_model(streamed: StreamedModel, serving: Serving, *, on_ready: Callable[[str, str], object]) -> None:
    """Serve `streamed` until a signal ends it; it stays open.

    Args:
        streamed: an open model, on one device or several.
        serving: how.
        on_ready: called with the server's address, and with what clients call the model, once it answers.

    Raises:
        PlanError: the address cannot be used.
        BatchStoreError: the folder cannot be used.
        CheckpointError: the checkpoint has no tokenizer.
    """
    with (
        closing(BatchStore(serving.folder, serving.batches)) as store,
        closing(GenerationService(streamed, most_waiting=serving.most_waiting)) as service,
    ):
        worker = BatchWorker(store, partial(answer, service, settings=serving.settings))
        app = build_app(
            service,
            settings=serving.settings,
            batches_router=_with_worker(build_router(store, worker, serving.batches), worker),
        )
        app.add_exception_handler(BatchApiError, _as_api_error)
        name = model_id(service, serving.settings)
        serve(
            app,
            service,
            serving.host,
            serving.port,
            options=serving.connections,
            on_ready=lambda address: on_ready(address, name),
        )


def _with_worker(routes: APIRouter, worker: BatchWorker) -> APIRouter:
    """Return routes whose worker runs as long as the app does."""

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await worker.stop()

    router = APIRouter(lifespan=working)
    router.include_router(routes)
    return router


async def _as_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BatchApiError)
    return ApiError(str(error), status=error.status, param=error.param, code=error.code).response()
