"""Every error has OpenAI's shape and tells nothing of the machine."""

from __future__ import annotations

import json

import pytest
from fastapi import APIRouter, HTTPException, Query
from kit.fake_service import FakeService
from kit.http_server import client_of, in_loop

from layerstream.errors import PlanError, ReadFailedError
from layerstream.server.app import build_app
from layerstream.server.settings import ServerSettings

CHAT = "/v1/chat/completions"


def message(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8}


def error_of(answer) -> dict:
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found_error"),
        ("POST", "/v1/embeddings", 404, "not_found_error"),
        ("GET", CHAT, 405, "invalid_request_error"),
        ("DELETE", "/v1/models", 405, "invalid_request_error"),
        ("GET", "/v1/models/other/name", 404, "not_found_error"),
        ("GET", "/docs", 404, "not_found_error"),
        ("GET", "/openapi.json", 404, "not_found_error"),
    ],
)
@in_loop
async def test_wrong_address_or_method(method, path, status, kind):
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["type"] == kind
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello",
        b"[1]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"temperature": Infinity}',
        b'{"messages": ' + b"[" * 100_000,
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": []} {}',
        "{}".encode("utf-16"),
    ],
)
@in_loop
async def test_hostile_json_is_a_400(raw):
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(CHAT, content=raw)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_json"


@pytest.mark.parametrize("field", ["temperature", "top_p", "seed", "n", "max_tokens"])
@in_loop
async def test_numbers_beyond_all_bounds_are_a_400(field):
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            for number in ("1e999", "-1e999", "9" * 4000):
                raw = json.dumps(message("hello"))[:-1] + f', "{field}": {number}}}'
                answer = await client.post(CHAT, content=raw)
                assert answer.status_code == 400
                assert error_of(answer)["param"] == field


@in_loop
async def test_full_queue_is_a_429_that_says_when_to_try_again():
    with FakeService(most_waiting=1, sweeps=0) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(CHAT, json={**message("hello"), "n": 2})
        service.wait_until(lambda status: status.cancelled == 1)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "8"
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")


@in_loop
async def test_closed_service_is_a_503():
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            service.close()
            answer = await client.post(CHAT, json=message("hello"))
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "closing"


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_failure_of_the_machine_keeps_its_details_to_the_log(stream, caplog):
    failure = ReadFailedError("cannot read /secret/weights.safetensors", path="/secret/weights.safetensors")
    with FakeService(failures={"bad": failure}) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(CHAT, json={**message("bad"), "stream": stream})
            good = await client.post(CHAT, json=message("good"))
    assert "secret" not in answer.text
    assert "server_error" in answer.text
    if not stream:
        assert answer.status_code == 500
        assert error_of(answer)["type"] == "server_error"
    assert "/secret/weights.safetensors" in caplog.text
    assert good.status_code == 200


@in_loop
async def test_request_that_cannot_be_planned_is_the_clients_mistake():
    with FakeService(failures={"bad": PlanError("it takes 9.0 GiB and 2.0 GiB are left")}) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(CHAT, json=message("bad"))
    assert answer.status_code == 400
    assert error_of(answer)["message"] == "it takes 9.0 GiB and 2.0 GiB are left"


@in_loop
async def test_failure_of_one_of_n_answers_cancels_the_others():
    with FakeService(failures={"bad": OSError("gone")}, sweeps=1) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post("/v1/completions", json={"prompt": ["good", "bad"]})
        service.wait_until(lambda status: (status.failed, status.cancelled) == (1, 1))
    assert answer.status_code == 500


@in_loop
async def test_unforeseen_error_is_a_500_without_any_detail():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())
        service.status = lambda: 1 / 0
        async with client_of(app) as client:
            answer = await client.get("/v1/models")
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "division" not in answer.text


@in_loop
async def test_errors_of_further_routes_have_the_same_shape():
    router = APIRouter()

    @router.get("/v1/batches/{number}")
    async def batch(number: int, limit: int = Query(le=10)) -> None:
        raise HTTPException(404, f"There is no batch {number}.")

    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(), batches_router=router)
        async with client_of(app) as client:
            missing = await client.get("/v1/batches/3?limit=2")
            wrong = await client.get("/v1/batches/3?limit=20")
    assert missing.status_code == 404
    assert error_of(missing)["message"] == "There is no batch 3."
    assert wrong.status_code == 400
    assert error_of(wrong)["param"] == "query.limit"
