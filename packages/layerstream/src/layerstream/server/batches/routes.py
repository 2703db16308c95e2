"""OpenAI's `/v1/files` and `/v1/batches`: reads requests, asks the store, and answers with OpenAI's objects.

Endpoints that only wait for the disk are plain functions, which FastAPI runs in threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from openai.types import Batch, FileDeleted, FileObject
from starlette.concurrency import run_in_threadpool

from .errors import BatchApiError
from .json_text import read_json, shorten
from .objects import batch_object, file_object, page_of
from .settings import BatchSettings
from .store import BatchStore
from .upload import receive_upload
from .worker import BatchWorker

_MOST_BODY_BYTES = 64 * 1024
_BATCH_FIELDS = ("input_file_id", "endpoint", "completion_window")


def build_router(store: BatchStore, worker: BatchWorker, settings: BatchSettings) -> APIRouter:
    """Return the routes. Whoever builds the app opens and closes the store, and starts and stops the worker.

    The routes raise `BatchApiError`; the app turns it into an answer.

    Args:
        store: files and batches.
        worker: is told when a batch is new or was cancelled.
        settings: the limits of an upload.
    """
    router = APIRouter(prefix="/v1")
    _add_file_routes(router, store, settings)
    _add_batch_routes(router, store, worker)
    return router


def _add_file_routes(router: APIRouter, store: BatchStore, settings: BatchSettings) -> None:
    files = store.files

    @router.post("/files")
    async def create_file(request: Request) -> FileObject:
        """Keep a file of requests, one JSON object on each line."""
        return file_object(await receive_upload(request, files, settings))

    @router.get("/files")
    def list_files(
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        after: str | None = None,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """List the files, page by page."""
        found, has_more = files.page(
            limit=limit, after=after, purpose=purpose, is_newest_first=order == "desc"
        )
        return page_of([file_object(each) for each in found], has_more=has_more)

    @router.get("/files/{file_id}")
    def retrieve_file(file_id: str) -> FileObject:
        """Describe a file."""
        return file_object(files.get(file_id))

    @router.get("/files/{file_id}/content", response_class=FileResponse)
    def retrieve_content(file_id: str) -> FileResponse:
        """Send the bytes of a file."""
        return FileResponse(files.path(file_id), media_type="application/octet-stream")

    @router.delete("/files/{file_id}")
    def delete_file(file_id: str) -> FileDeleted:
        """Delete a file, unless a batch that has not ended reads it."""
        files.delete(file_id)
        return FileDeleted(id=file_id, deleted=True, object="file")


def _add_batch_routes(router: APIRouter, store: BatchStore, worker: BatchWorker) -> None:
    batches = store.batches

    @router.post("/batches")
    async def create_batch(request: Request) -> Batch:
        """Begin a batch; its input is checked in the background."""
        values = await _batch_values(request)
        stored = await run_in_threadpool(batches.create, **values)
        worker.notify()
        return batch_object(stored)

    @router.get("/batches")
    def list_batches(
        limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> dict[str, Any]:
        """List the batches, the newest first, page by page."""
        found, has_more = batches.page(limit=limit, after=after)
        return page_of([batch_object(each) for each in found], has_more=has_more)

    @router.get("/batches/{batch_id}")
    def retrieve_batch(batch_id: str) -> Batch:
        """Describe a batch."""
        return batch_object(batches.get(batch_id))

    @router.post("/batches/{batch_id}/cancel")
    def cancel_batch(batch_id: str) -> Batch:
        """Let a batch start no more lines; it ends when those in flight have."""
        stored = batches.cancel(batch_id)
        worker.notify()
        return batch_object(stored)


async def _batch_values(request: Request) -> dict[str, Any]:
    """Return the parameters of a new batch, each of the right type."""
    body = await _read_object(request)
    values: dict[str, Any] = {name: _text(body, name) for name in _BATCH_FIELDS}
    values["metadata"] = _metadata(body)
    unknown = sorted(set(body) - set(values))
    if unknown:
        name = shorten(unknown[0])
        raise BatchApiError(f"this server does not have the parameter {name}", status=400, param=unknown[0])
    return values


async def _read_object(request: Request) -> dict[str, Any]:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MOST_BODY_BYTES:
            raise BatchApiError(f"the request is longer than {_MOST_BODY_BYTES:,} bytes", status=413)
    try:
        body = read_json(raw)
    except ValueError as error:
        raise BatchApiError("the request is not JSON", status=400) from error
    if not isinstance(body, dict):
        raise BatchApiError("the request must be a JSON object", status=400)
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        raise BatchApiError(f"the request has no {name}", status=400, param=name)
    if not isinstance(value, str):
        raise BatchApiError(f"{name} must be text, not {shorten(value)}", status=400, param=name)
    return value


def _metadata(body: Mapping[str, Any]) -> dict[str, str] | None:
    value = body.get("metadata")
    is_good = value is None or (
        isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    )
    if not is_good:
        raise BatchApiError("metadata must be an object of texts", status=400, param="metadata")
    return value
