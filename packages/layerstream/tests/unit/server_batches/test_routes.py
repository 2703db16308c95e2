"""OpenAI's own client can use files and batches; a mistake gets one clear error that tells nothing more."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from kit.batch_apps import Clients, run, until_ended
from kit.batch_stores import CHAT, StoreKit

from layerstream.server.batches.settings import BatchSettings


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
