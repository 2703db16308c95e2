"""Streams: the first bytes, the comments, errors on the way, and clients that leave."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from kit.fake_service import FakeService
from kit.http_server import client_of, in_loop, running_server

from layerstream.server.app import build_app
from layerstream.server.settings import ServerSettings

CHAT = "/v1/chat/completions"


def body_of(text: str, **fields) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "stream": True, **fields}


def chunks_in(text: str) -> list:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def call_app(app, body: dict, send) -> None:
    """Call an app as a server would, for a client that has sent its body and stays."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets the event")

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
    await app(scope, receive, send)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_headers_and_place_in_the_queue_come_before_any_token():
    with FakeService(sweeps=0, most_running=1) as service:
        app = build_app(service, settings=ServerSettings(keep_alive_s=0.01))
        with (
            running_server(app, service) as address,
            httpx.Client(base_url=address, timeout=30) as client,
            client.stream("POST", CHAT, json=body_of("first")) as first,
            client.stream("POST", CHAT, json=body_of("second")) as second,
        ):
            assert first.headers["x-queue-position"] == "1"
            assert second.headers["x-queue-position"] == "2"
            assert second.headers["x-estimated-wait-seconds"] == "6.0"
            assert second.headers["content-type"].startswith("text/event-stream")
            lines = second.iter_lines()
            assert next(lines) == ": queue position 2, about 6 s until the first token"
            assert next(lines) == ""
            # the first request runs now and the second moves up
            service.allow_sweeps(1)
            moved = ": queue position 1, about 4 s until the first token, 0.5 tokens/s"
            assert any(line == moved for line in lines)
            service.allow_sweeps(100)
            assert any(line == "data: [DONE]" for line in lines)
    assert service.status().answered == 2


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_comments_keep_a_stream_alive_between_two_tokens():
    with FakeService(sweeps=1) as service:
        app = build_app(service, settings=ServerSettings(keep_alive_s=0.01))
        with (
            running_server(app, service) as address,
            httpx.Client(base_url=address, timeout=30) as client,
            client.stream("POST", CHAT, json=body_of("hello")) as stream,
        ):
            lines = stream.iter_lines()
            assert any(line == ": 0.5 tokens/s" for line in lines)
            service.allow_sweeps(100)
            assert any(line == "data: [DONE]" for line in lines)


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("sweeps", [0, 3])
def test_client_that_leaves_a_stream_cancels_its_request(sweeps):
    with FakeService(sweeps=sweeps) as service:
        app = build_app(service, settings=ServerSettings())
        with running_server(app, service) as address, httpx.Client(base_url=address, timeout=30) as client:
            with client.stream("POST", CHAT, json=body_of("hello", n=2)) as stream:
                next(stream.iter_lines())
            service.wait_until(lambda status: status.cancelled == 2)
    assert service.status().answered == 0


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_client_that_leaves_before_the_answer_cancels_its_request():
    with FakeService(sweeps=0) as service:
        app = build_app(service, settings=ServerSettings())
        with running_server(app, service) as address:

            async def leave() -> None:
                async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                    request = asyncio.ensure_future(client.post(CHAT, json=body_of("hello", stream=False)))
                    await asyncio.to_thread(service.wait_until, lambda status: status.waiting == 1)
                    request.cancel()
                    await asyncio.gather(request, return_exceptions=True)

            asyncio.run(leave())
            service.wait_until(lambda status: status.cancelled == 1)
            metrics = httpx.get(f"{address}/metrics", timeout=30).text
    assert f'layerstream_http_requests_total{{endpoint="{CHAT}",status="499"}} 1.0' in metrics


@in_loop
async def test_client_that_takes_no_data_counts_as_gone():
    with FakeService(sweeps=3) as service:
        app = build_app(service, settings=ServerSettings(send_s=0.05))

        async def send(message: dict) -> None:
            if b"data:" in message.get("body", b""):
                await asyncio.Event().wait()

        await call_app(app, body_of("hello"), send)
        service.wait_until(lambda status: status.cancelled == 1)
    assert app.state.open_requests.count == 0


@in_loop
async def test_request_is_cancelled_even_if_the_response_ends_before_its_first_byte():
    with FakeService(sweeps=0) as service:
        app = build_app(service, settings=ServerSettings())

        async def send(message: dict) -> None:
            raise OSError("the connection is lost")

        with pytest.raises(OSError, match="the connection is lost"):
            await call_app(app, body_of("hello"), send)
        service.wait_until(lambda status: status.cancelled == 1)


@in_loop
async def test_stream_with_much_to_send_lets_others_have_their_turn():
    with FakeService(replies={"hello": "a" * 200}, context_tokens=1000) as service:
        app = build_app(service, settings=ServerSettings())
        turns: list[str] = []

        async def send(message: dict) -> None:
            if message["type"] == "http.response.start":
                # from here on every event is ready
                await asyncio.to_thread(service.wait_until, lambda status: status.answered == 1)
                asyncio.get_running_loop().call_soon(turns.append, "other")
            elif b"data:" in message.get("body", b""):
                turns.append("done" if b"[DONE]" in message["body"] else "chunk")

        await call_app(app, body_of("hello", max_tokens=300), send)
    assert turns.index("other") < turns.index("done") - 1


@in_loop
async def test_failure_on_the_way_is_the_last_chunk():
    with FakeService(failures={"bad": OSError("disk")}) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(CHAT, json=body_of("bad"))
    assert answer.status_code == 200
    chunks = chunks_in(answer.text)
    assert chunks[-1]["error"]["type"] == "server_error"
    assert "disk" not in answer.text


@in_loop
async def test_service_that_closes_ends_its_streams_with_an_error():
    with FakeService(sweeps=2) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            request = asyncio.ensure_future(client.post(CHAT, json=body_of("hello")))
            await asyncio.to_thread(service.wait_until, lambda status: status.sweeps == 2)
            await asyncio.to_thread(service.close)
            answer = await request
    assert chunks_in(answer.text)[-1]["error"]["code"] == "closing"


@in_loop
async def test_text_that_no_part_has_brought_comes_with_the_end():
    class Withholding(FakeService):
        """Holds the text back until the end, as for a stop text that does not come."""

        def submit(self, request, on_event, **settings):
            def without_text(event):
                on_event(event) if not hasattr(event, "text") else None

            return super().submit(request, without_text, **settings)

    with Withholding(replies={"hello": "good day"}) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(CHAT, json=body_of("hello"))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_in(answer.text)]
    assert "".join(delta.get("content", "") for delta in deltas) == "good day"
