"""OpenAI's own client can use files and batches; a mistake gets one clear error that tells nothing more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from kit.batch_stores import CHAT, StoreKit
from openai import AsyncOpenAI

from layerstream.server.batches.errors import BatchApiError
from layerstream.server.batches.routes import build_router
from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.worker import BatchWorker

FORM_END = b"\r\n--X--\r\n"


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


def form(*parts: bytes, name: bytes = b"in.jsonl") -> dict[str, Any]:
    """Return a form with a file of `parts` and a purpose, as the arguments of a request."""
    head = b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--X\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'

    async def stream() -> AsyncIterator[bytes]:
        for piece in (head, *parts, FORM_END):
            yield piece

    return {"content": stream(), "headers": {"content-type": "multipart/form-data; boundary=X"}}


async def until_ended(clients: Clients, batch_id: str) -> openai.types.Batch:
    while (batch := await clients.openai.batches.retrieve(batch_id)).status in (
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        await asyncio.sleep(0.001)
    return batch


def test_a_client_gets_the_answers_to_what_it_has_uploaded(kit: StoreKit) -> None:
    async def work(clients: Clients) -> None:
        client = clients.openai
        contents = kit.input_bytes([kit.line("a"), kit.line("b", body={}), kit.line("c")])
        uploaded = await client.files.create(file=("input.jsonl", contents), purpose="batch")
        assert (uploaded.filename, uploaded.bytes, uploaded.purpose) == (
            "input.jsonl",
            len(contents),
            "batch",
        )
        created = await client.batches.create(
            input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h", metadata={"who": "me"}
        )
        assert (created.status, created.object, created.metadata) == ("validating", "batch", {"who": "me"})
        batch = await until_ended(clients, created.id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
        assert batch.output_file_id is not None and batch.error_file_id is not None
        output = [
            json.loads(line) for line in (await client.files.content(batch.output_file_id)).text.splitlines()
        ]
        assert [(each["custom_id"], each["response"]["body"]["of"]) for each in output] == [
            ("a", "a"),
            ("c", "c"),
        ]
        (error,) = (await client.files.content(batch.error_file_id)).text.splitlines()
        assert json.loads(error)["response"]["status_code"] == 400
        assert (await client.files.content(uploaded.id)).content == contents

    run(kit, work)


def test_a_client_lists_retrieves_and_deletes_files(kit: StoreKit) -> None:
    async def work(clients: Clients) -> None:
        client = clients.openai
        ids = [
            (await client.files.create(file=(f"{number}.jsonl", b"x" * number), purpose="batch")).id
            for number in range(1, 6)
        ]
        assert [each.id async for each in client.files.list(limit=2)] == ids[::-1]
        assert [each.id async for each in client.files.list(limit=2, order="asc")] == ids
        assert [each.id async for each in client.files.list(purpose="batch_output")] == []
        assert (await client.files.retrieve(ids[2])).bytes == 3
        async for each in client.files.list(limit=2):
            deleted = await client.files.delete(each.id)
            assert (deleted.id, deleted.deleted, deleted.object) == (each.id, True, "file")
        assert (await client.files.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(ids[0])

    run(kit, work)
    assert kit.names_on_disk() == set()


def test_a_client_lists_batches_page_by_page(kit: StoreKit) -> None:
    ids = [kit.new_batch(b"").id for _ in range(5)]

    async def work(clients: Clients) -> None:
        assert [each.id async for each in clients.openai.batches.list(limit=2)] == ids[::-1]
        page = (await clients.plain.get("/batches", params={"limit": 2, "after": ids[3]})).json()
        assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
            "list",
            ids[2],
            ids[1],
            True,
        )
        last = (await clients.plain.get("/batches", params={"after": ids[0]})).json()
        assert last == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

    run(kit, work, is_working=False)


def test_a_client_cancels_a_batch_and_can_do_so_twice(kit: StoreKit) -> None:
    batch = kit.running_batch("a", "b")

    async def work(clients: Clients) -> None:
        for _ in range(2):
            cancelled = await clients.openai.batches.cancel(batch.id)
            assert (cancelled.status, cancelled.cancelling_at) == ("cancelling", int(kit.clock.now_s))
        clients.worker.start()
        ended = await until_ended(clients, batch.id)
        assert (ended.status, ended.cancelled_at) == ("cancelled", int(kit.clock.now_s))
        assert (await clients.openai.batches.cancel(batch.id)).status == "cancelled"

    run(kit, work, is_working=False)


def test_a_client_sees_what_is_wrong_with_its_input(kit: StoreKit) -> None:
    batch = kit.new_batch(kit.input_bytes([kit.line("a"), kit.line("b", url="/v1/completions")]))

    async def work(clients: Clients) -> None:
        failed = await until_ended(clients, batch.id)
        assert (failed.status, failed.output_file_id) == ("failed", None)
        assert failed.errors is not None and failed.errors.data is not None
        (error,) = failed.errors.data
        assert (error.line, error.code, error.param) == (2, "url_mismatch", "url")
        with pytest.raises(openai.ConflictError, match="is failed"):
            await clients.openai.batches.cancel(batch.id)

    run(kit, work)


def test_a_file_that_a_batch_reads_is_not_deleted(kit: StoreKit) -> None:
    batch = kit.running_batch("a")

    async def work(clients: Clients) -> None:
        with pytest.raises(openai.ConflictError) as refused:
            await clients.openai.files.delete(batch.input_file_id)
        assert refused.value.code == "file_in_use"

    run(kit, work, is_working=False)


@pytest.mark.parametrize(
    ("values", "status", "param"),
    [
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"input_file_id": 7}, 400, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"endpoint": "\ud800"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": ["a"]}, 400, "metadata"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        ({"metadata": {"a": "\ud800"}}, 400, "metadata"),
        ({"metadata": {"a": "b" * 513}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, 400, "output_expires_after"),
    ],
)
def test_a_batch_with_a_bad_value_gets_one_error(
    kit: StoreKit, values: dict[str, Any], status: int, param: str
) -> None:
    good = {"input_file_id": kit.upload(b"").id, "endpoint": CHAT, "completion_window": "24h"}

    async def work(clients: Clients) -> None:
        answer = await clients.plain.post("/batches", content=json.dumps(good | values))
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == param

    run(kit, work, is_working=False)
    assert kit.store.batches.page(limit=9) == ([], False)


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b'{"a": NaN}', 400), (b'"' + b"x" * 70_000 + b'"', 413)]
)
def test_a_batch_that_is_no_json_object_gets_one_error(kit: StoreKit, body: bytes, status: int) -> None:
    async def work(clients: Clients) -> None:
        answer = await clients.plain.post("/batches", content=body)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    run(kit, work, is_working=False)


def test_too_many_open_batches_are_refused(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_open_batches=1))
    kit.running_batch("a")
    file_id = kit.upload(b"").id

    async def work(clients: Clients) -> None:
        with pytest.raises(openai.RateLimitError, match="1 batches are open"):
            await clients.openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")

    run(kit, work, is_working=False)


@pytest.mark.parametrize("file_id", ["file-none", "..%2Fbatches.sqlite", "%00", "%ED%A0%80"])
def test_no_id_leads_out_of_the_folder(kit: StoreKit, file_id: str) -> None:
    async def work(clients: Clients) -> None:
        for path in (f"/files/{file_id}", f"/files/{file_id}/content"):
            answer = await clients.plain.get(path)
            assert answer.status_code == 404
            assert str(kit.folder) not in answer.text
        assert (await clients.plain.delete(f"/files/{file_id}")).status_code == 404
        assert (await clients.plain.get(f"/batches/{file_id}")).status_code == 404

    run(kit, work, is_working=False)
    assert (kit.folder / "batches.sqlite").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"in.jsonl", "in.jsonl"),
        (b"../../etc/passwd", "passwd"),
        (b"C:\\\\dir\\\\in.jsonl", "in.jsonl"),
        (b"\xff\x01\tin.jsonl", "\ufffdin.jsonl"),
        ("日本.jsonl".encode(), "日本.jsonl"),
        (b"x" * 400, "x" * 255),
        (b"", "upload"),
        (b"..", ".."),
    ],
)
def test_a_name_is_shown_and_is_no_path(kit: StoreKit, name: bytes, shown: str) -> None:
    async def work(clients: Clients) -> None:
        uploaded = (await clients.plain.post("/files", **form(b"x", name=name))).json()
        assert uploaded["filename"] == shown
        assert kit.names_on_disk() == {uploaded["id"]}
        assert (await clients.plain.get(f"/files/{uploaded['id']}/content")).content == b"x"

    run(kit, work, is_working=False)


def test_a_large_file_is_written_piece_by_piece(kit: StoreKit) -> None:
    """While the client still sends, most of what it has sent is on disk already."""
    sizes: list[int] = []
    pieces = 40

    async def work(clients: Clients) -> None:
        arguments = form()
        head = b""
        async for piece in form()["content"]:
            head += piece
        head = head.removesuffix(FORM_END)

        async def stream() -> AsyncIterator[bytes]:
            yield head
            for _ in range(pieces):
                yield b"x" * 500_000
                (part,) = (kit.folder / "files").iterdir()
                sizes.append(part.stat().st_size)
            yield FORM_END

        answer = await clients.plain.post("/files", content=stream(), headers=arguments["headers"])
        assert answer.json()["bytes"] == pieces * 500_000

    run(kit, work, is_working=False)
    assert sizes == sorted(sizes)
    assert sizes[-1] > (pieces - 5) * 500_000


def test_a_file_that_is_too_large_is_refused_before_it_has_all_come(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_file_bytes=1_000))
    sent = []

    async def work(clients: Clients) -> None:
        async def stream() -> AsyncIterator[bytes]:
            async for piece in form(*[b"x" * 600] * 50)["content"]:
                sent.append(piece)
                yield piece

        answer = await clients.plain.post("/files", content=stream(), headers=form()["headers"])
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "file_too_large"
        announced = await clients.plain.post(
            "/files", content=b"", headers=form()["headers"] | {"content-length": "1000000"}
        )
        assert announced.status_code == 413
        assert (await clients.plain.post("/files", **form(b"x" * 1_000))).status_code == 200

    run(kit, work, is_working=False)
    assert len(sent) < 10
    assert len(kit.names_on_disk()) == 1


def test_a_client_that_goes_away_leaves_no_file(kit: StoreKit) -> None:
    class GoneError(Exception):
        pass

    async def work(clients: Clients) -> None:
        async def stream() -> AsyncIterator[bytes]:
            yield (
                b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 5_000_000
            )
            assert len(kit.names_on_disk()) == 1
            raise GoneError

        with pytest.raises(GoneError):
            await clients.plain.post("/files", content=stream(), headers=form()["headers"])

    run(kit, work, is_working=False)
    assert kit.names_on_disk() == set()


def part(name: str, value: bytes = b"x") -> bytes:
    return b'--X\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n"


PURPOSE, FILE, END = part("purpose", b"batch"), part("file"), b"--X--\r\n"


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", "multipart/form-data"),
        (b"", "multipart/form-data", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=" + "x" * 500, "boundary is too long"),
        (b"", None, "ends too early"),
        (b"nonsense", None, "damaged"),
        (FILE + PURPOSE, None, "ends too early"),
        (PURPOSE + END, None, "has no file"),
        (FILE + END, None, "has no purpose"),
        (FILE + part("purpose", b"fine-tune") + END, None, "purpose must be 'batch'"),
        (FILE + FILE + PURPOSE + END, None, "'file' twice"),
        (FILE + PURPOSE + PURPOSE + END, None, "'purpose' twice"),
        (FILE + PURPOSE + part("expires_after[seconds]") + END, None, "parameter 'expires_after[seconds]'"),
        (FILE + part("purpose", b"x" * 2_000) + END, None, "'purpose' is too long"),
        (b"".join(part(f"p{number}") for number in range(20)) + END, None, "more than 16 parts"),
    ],
)
def test_a_form_with_a_mistake_gets_one_error_and_leaves_no_file(
    kit: StoreKit, body: bytes, content_type: str | None, message: str
) -> None:
    headers = {"content-type": content_type or "multipart/form-data; boundary=X"}

    async def work(clients: Clients) -> None:
        for size in (len(body) or 1, 7):  # at once, and in small pieces

            async def stream(size: int = size) -> AsyncIterator[bytes]:
                for start in range(0, len(body), size):
                    yield body[start : start + size]

            answer = await clients.plain.post("/files", content=stream(), headers=headers)
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]

    run(kit, work, is_working=False)
    assert kit.names_on_disk() == set()


@pytest.mark.parametrize("size", [1, 3, 1_000_000])
def test_a_form_arrives_whole_in_pieces_of_any_size_and_parts_in_any_order(kit: StoreKit, size: int) -> None:
    contents = b"a\r\n--Y\r\r\n--\r\n" * 3
    body = part("file", contents) + PURPOSE + END

    async def work(clients: Clients) -> None:
        async def stream() -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        answer = await clients.plain.post("/files", content=stream(), headers=form()["headers"])
        assert (await clients.plain.get(f"/files/{answer.json()['id']}/content")).content == contents

    run(kit, work, is_working=False)


def test_too_many_files_are_refused(kit: StoreKit) -> None:
    kit.reopen(BatchSettings(most_files=1))

    async def work(clients: Clients) -> None:
        await clients.openai.files.create(file=("a", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="delete some"):
            await clients.openai.files.create(file=("a", b"x"), purpose="batch")

    run(kit, work, is_working=False)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x"])
def test_a_limit_out_of_range_is_refused(kit: StoreKit, query: str) -> None:
    async def work(clients: Clients) -> None:
        assert (await clients.plain.get(f"/batches?{query}")).status_code == 422

    run(kit, work, is_working=False)


def test_pages_after_what_never_was_are_refused(kit: StoreKit) -> None:
    async def work(clients: Clients) -> None:
        for path in ("/files", "/batches"):
            answer = await clients.plain.get(path, params={"after": "none"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")

    run(kit, work, is_working=False)


def test_no_answer_names_a_path_of_this_machine(kit: StoreKit) -> None:
    batch = kit.running_batch("a")

    async def work(clients: Clients) -> None:
        ended = await until_ended(clients, batch.id)
        for path in ("/files", "/batches", f"/batches/{batch.id}", f"/files/{ended.output_file_id}/content"):
            answer = await clients.plain.get(path)
            assert answer.status_code == 200
            assert str(kit.folder) not in f"{answer.text} {answer.headers}"

    run(kit, work)
