"""What stands before the routes: keys, origins, hosts, bodies and the number of open requests."""

from __future__ import annotations

import asyncio

import pytest
from kit.fake_service import FakeService
from kit.http_server import client_of, in_loop

from layerstream.server.app import build_app
from layerstream.server.guards import OpenRequests
from layerstream.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


async def chunks_of(*chunks: bytes):
    for chunk in chunks:
        yield chunk


async def never_ending():
    yield b'{"messages": '
    await asyncio.Event().wait()


async def must_not_be_read():
    raise AssertionError("the body was read")
    yield b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (None, 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        ("Bearer secret2", 401),
        ("Basic secret", 401),
        ("Bearer sécret", 401),
        ("Bearer secret", 200),
        ("bearer  secret ", 200),
    ],
)
@in_loop
async def test_key_is_asked_for(sent, status):
    headers = {} if sent is None else {"authorization": sent.encode("latin-1")}
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(api_key="secret"))
        async with client_of(app) as client:
            answer = await client.post(CHAT, json=HELLO, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


@in_loop
async def test_only_the_health_needs_no_key():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(api_key="secret"))
        async with client_of(app) as client:
            statuses = {
                path: (await client.get(path)).status_code
                for path in ("/health", "/metrics", "/v1/models", "/nowhere", "/health/")
            }
    assert statuses == {"/health": 200, "/metrics": 401, "/v1/models": 401, "/nowhere": 401, "/health/": 401}


def test_key_is_not_shown_with_the_settings():
    assert "secret" not in repr(ServerSettings(api_key="secret"))


@in_loop
async def test_body_is_not_read_before_the_key_is_checked():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(api_key="secret"))
        async with client_of(app) as client:
            answer = await client.post(CHAT, content=must_not_be_read())
    assert answer.status_code == 401


@in_loop
async def test_body_that_says_it_is_too_large_is_not_read():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(max_body_bytes=100))
        async with client_of(app) as client:
            for length in ("101", "9" * 5000):
                answer = await client.post(
                    CHAT, content=must_not_be_read(), headers={"content-length": length}
                )
                assert answer.status_code == 413
                assert answer.json()["error"]["code"] == "body_too_large"


@in_loop
async def test_body_is_counted_as_it_arrives():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(max_body_bytes=100))
        async with client_of(app) as client:
            answer = await client.post(CHAT, content=chunks_of(*[b" " * 10] * 11))
            fits = await client.post(CHAT, content=chunks_of(*[b" " * 10] * 10))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "The body is larger than the 100 bytes allowed."
    assert fits.json()["error"]["code"] == "invalid_json"


@in_loop
async def test_body_that_does_not_arrive_in_time_is_a_408_and_takes_no_place():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(body_s=0.05, max_open_requests=1))
        async with client_of(app) as client:
            slow = [client.post(CHAT, content=never_ending()) for _ in range(3)]
            answers = await asyncio.gather(*slow, client.post(CHAT, json=HELLO))
    assert [answer.status_code for answer in answers] == [408, 408, 408, 200]
    assert answers[0].json()["error"]["code"] == "body_too_slow"
    assert answers[0].headers["connection"] == "close"
    assert app.state.open_requests.count == 0


@in_loop
async def test_more_requests_than_allowed_are_a_429():
    with FakeService(sweeps=0) as service:
        app = build_app(service, settings=ServerSettings(max_open_requests=2))
        async with client_of(app) as client:
            first = [asyncio.ensure_future(client.post(CHAT, json=HELLO)) for _ in range(2)]
            await asyncio.to_thread(service.wait_until, lambda status: status.waiting == 2)
            refused = await client.post(CHAT, json=HELLO)
            reads = await client.get("/v1/models")
            service.allow_sweeps(100)
            answers = await asyncio.gather(*first)
            later = await client.post(CHAT, json=HELLO)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "10"
    assert refused.json()["error"]["code"] == "too_many_requests"
    assert [answer.status_code for answer in (reads, *answers, later)] == [200] * 4


@in_loop
async def test_draining_app_takes_no_new_requests_and_finishes_the_open_ones():
    with FakeService(sweeps=0) as service:
        app = build_app(service, settings=ServerSettings())
        open_requests: OpenRequests = app.state.open_requests
        async with client_of(app) as client:
            first = asyncio.ensure_future(client.post(CHAT, json=HELLO))
            await asyncio.to_thread(service.wait_until, lambda status: status.waiting == 1)
            open_requests.is_draining = True
            refused = await client.post(CHAT, json=HELLO)
            models, health = await client.get("/v1/models"), await client.get("/health")
            metrics = await client.get("/metrics")
            service.allow_sweeps(100)
            answer = await first
    assert [got.status_code for got in (refused, models, health, metrics)] == [503, 503, 503, 200]
    assert refused.json()["error"]["code"] == "closing"
    assert answer.status_code == 200


@in_loop
async def test_body_that_is_complete_only_after_draining_began_is_refused():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())

        async def body():
            yield b"{"
            app.state.open_requests.is_draining = True
            yield b"}"

        async with client_of(app) as client:
            answer = await client.post(CHAT, content=body())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "closing"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://server:9", 403),
        ("http://server", 200),
        ("https://chat.example", 200),
    ],
)
@in_loop
async def test_scripts_of_other_pages_are_refused(origin, status):
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(origins=("https://chat.example",)))
        async with client_of(app) as client:
            answer = await client.post(CHAT, json=HELLO, headers={"origin": origin})
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == ("https://chat.example" if origin == "https://chat.example" else None)


@in_loop
async def test_no_cors_unless_origins_are_given():
    ask = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            refused = await client.options(CHAT, headers=ask)
        settings = ServerSettings(origins=("https://chat.example",), api_key="secret")
        async with client_of(build_app(service, settings=settings)) as client:
            allowed = await client.options(CHAT, headers=ask)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("evil.example", 403), ("[", 403)],
)
@in_loop
async def test_server_answers_only_under_its_names(host, status):
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(hosts=("localhost", "::1")))
        async with client_of(app) as client:
            answer = await client.get("/health", headers={"host": host})
    assert answer.status_code == status


@in_loop
async def test_uploads_have_limits_of_their_own():
    settings = ServerSettings(max_body_bytes=10, max_upload_bytes=20)
    with FakeService() as service:
        async with client_of(build_app(service, settings=settings)) as client:
            statuses = [
                (await client.post(path, content=b"x" * size)).status_code
                for path, size in [("/v1/files", 20), ("/v1/files", 21), ("/v1/filesystem", 20)]
            ]
    # there is no such route in this app, but the guard stands before all of them
    assert statuses == [404, 413, 413]
