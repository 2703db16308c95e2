"""Bodies are answered without HTTP, as in a batch."""

from __future__ import annotations

import asyncio

import pytest
from kit.fake_service import FakeService
from kit.http_server import in_loop

from layerstream.server.answering import CHAT, COMPLETIONS, answer
from layerstream.server.settings import ServerSettings

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@in_loop
async def test_answer_returns_status_and_body():
    with FakeService(replies={"hello": "good day"}) as service:
        status, body = await answer(service, CHAT, HELLO)
        other, completion = await answer(service, COMPLETIONS, {"prompt": "abc"})
    assert (status, body["choices"][0]["message"]["content"]) == (200, "good day")
    assert (other, completion["choices"][0]["text"]) == (200, "cba")


@pytest.mark.parametrize(
    ("endpoint", "body", "status", "param"),
    [
        ("/v1/embeddings", {}, 404, None),
        (CHAT, {}, 400, "messages"),
        (CHAT, {**HELLO, "stream": True}, 400, "stream"),
        (CHAT, {**HELLO, "model": "other"}, 404, "model"),
        (CHAT, {**HELLO, "n": 3}, 400, "n"),
        (CHAT, {"messages": [{"role": "user", "content": "bad"}]}, 500, None),
    ],
)
@in_loop
async def test_answer_returns_errors_as_bodies(endpoint, body, status, param):
    with FakeService(failures={"bad": OSError("disk")}) as service:
        got, error = await answer(service, endpoint, body, settings=ServerSettings(max_n=2))
    assert (got, error["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "name": "\ud800"}]}, None),
        (CHAT, {**HELLO, "stop": "\ud800"}, "stop.0"),
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt.0"),
        (COMPLETIONS, {"prompt": "a", "temperature": float("nan")}, "temperature"),
    ],
)
@in_loop
async def test_texts_and_numbers_that_json_cannot_hold_are_refused(endpoint, body, param):
    with FakeService() as service:
        service.tokenizer.chat_template = (
            "{% for turn in messages %}{{ turn.name }}{{ turn.content }}{% endfor %}"
        )
        status, error = await answer(service, endpoint, body)
    assert status == 400
    assert param is None or error["error"]["param"] == param


@in_loop
async def test_unforeseen_error_is_a_body_too():
    with FakeService() as service:
        service.tokenizer = None
        status, error = await answer(service, COMPLETIONS, {"prompt": "a"})
    assert (status, error["error"]["type"]) == (500, "server_error")
    assert "NoneType" not in error["error"]["message"]


@in_loop
async def test_full_queue_and_closed_service_are_bodies_too():
    with FakeService(sweeps=0, most_waiting=0) as service:
        assert (await answer(service, CHAT, HELLO))[0] == 429
        service.close()
        assert (await answer(service, CHAT, HELLO))[0] == 503


@in_loop
async def test_cancelled_answer_cancels_its_requests():
    with FakeService(sweeps=0) as service:
        task = asyncio.ensure_future(answer(service, CHAT, {**HELLO, "n": 2}))
        await asyncio.to_thread(service.wait_until, lambda status: status.waiting == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        service.wait_until(lambda status: status.cancelled == 2)


@in_loop
async def test_answers_at_the_same_time_do_not_mix():
    texts = [f"{number:03}" for number in range(40)]
    with FakeService(most_running=7) as service:
        bodies = [{"prompt": text, "max_tokens": 9} for text in texts]
        answers = await asyncio.gather(*(answer(service, COMPLETIONS, body) for body in bodies))
    assert [body["choices"][0]["text"] for _, body in answers] == [text[::-1] for text in texts]
    assert len({body["id"] for _, body in answers}) == len(texts)
