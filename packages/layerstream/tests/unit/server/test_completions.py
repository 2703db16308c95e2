"""Completions: prompts in all four forms, echo, chances, and streams."""

from __future__ import annotations

from itertools import chain

import openai
import pytest
from kit.fake_service import FakeService
from kit.http_server import ADDRESS, client_of, in_loop

from layerstream.server.app import build_app
from layerstream.server.settings import ServerSettings

MODEL = "fake/tiny"


def tokens_of(text: str) -> list[int]:
    return [ord(character) - 32 + 5 for character in text]


async def complete(fields: dict, **settings) -> tuple[int, dict]:
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings(**settings))) as client:
            answer = await client.post("/v1/completions", json={"model": MODEL, **fields})
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["cba"]),
        (["abc", "de"], ["cba", "ed"]),
        (tokens_of("abc"), ["cba"]),
        ([tokens_of("abc"), tokens_of("de")], ["cba", "ed"]),
    ],
)
@in_loop
async def test_prompt_is_text_texts_tokens_or_lists_of_tokens(prompt, texts):
    status, body = await complete({"prompt": prompt})
    assert status == 200
    assert [choice["text"] for choice in body["choices"]] == texts
    assert [choice["index"] for choice in body["choices"]] == list(range(len(texts)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert body["object"] == "text_completion"


@in_loop
async def test_completion_has_16_tokens_unless_the_body_says_otherwise():
    _, body = await complete({"prompt": "x" * 40})
    assert body["choices"][0]["text"] == "x" * 16
    assert body["choices"][0]["finish_reason"] == "length"
    _, body = await complete({"prompt": "x" * 40}, max_new_tokens=3)
    assert body["choices"][0]["text"] == "x" * 3


@in_loop
async def test_answers_are_numbered_prompt_by_prompt():
    _, body = await complete({"prompt": ["ab", "cd"], "n": 2, "temperature": 1, "seed": 1})
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == ["ba seed 1", "ba seed 2", "dc seed 1", "dc seed 2"]


@pytest.mark.parametrize("prompt", ["abc", tokens_of("abc")])
@in_loop
async def test_echo_puts_the_prompt_before_the_answer(prompt):
    _, body = await complete({"prompt": prompt, "echo": True})
    assert body["choices"][0]["text"] == "abccba"


@in_loop
async def test_logprobs_are_columns_with_the_token_itself_always_among_the_top():
    _, body = await complete({"prompt": "ab", "logprobs": 0, "max_tokens": 2})
    columns = body["choices"][0]["logprobs"]
    assert columns["tokens"] == ["b", "a"]
    assert columns["token_logprobs"] == [-0.25, -0.25]
    assert columns["top_logprobs"] == [{"b": -0.25}, {"a": -0.25}]
    assert columns["text_offset"] == [0, 1]
    _, body = await complete({"prompt": "ab", "logprobs": 2, "max_tokens": 1})
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"b": -0.25, "c": -0.5}]


@pytest.mark.parametrize("prompt", ["abc", tokens_of("abc")])
@in_loop
async def test_echo_with_logprobs_scores_the_prompt_too(prompt):
    _, body = await complete({"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2})
    (choice,) = body["choices"]
    assert choice["text"] == "abccb"
    columns = choice["logprobs"]
    assert columns["tokens"] == ["a", "b", "c", "c", "b"]
    assert columns["token_logprobs"] == [None, -0.25, -0.25, -0.25, -0.25]
    assert columns["top_logprobs"] == [None, {"b": -0.25}, {"c": -0.25}, {"c": -0.25}, {"b": -0.25}]
    assert columns["text_offset"] == [0, 1, 2, 3, 4]
    assert body["usage"]["completion_tokens"] == 2


@in_loop
async def test_a_prompt_alone_can_be_scored():
    _, body = await complete({"prompt": ["abc", "d"], "echo": True, "logprobs": 0, "max_tokens": 0})
    assert [choice["text"] for choice in body["choices"]] == ["abc", "d"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 2
    columns = [choice["logprobs"] for choice in body["choices"]]
    assert [each["tokens"] for each in columns] == [["a", "b", "c"], ["d"]]
    assert [each["token_logprobs"] for each in columns] == [[None, -0.25, -0.25], [None]]
    assert body["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 0,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


SCORED = {"logprobs": 1, "echo": True}


@pytest.mark.parametrize("more", [{}, SCORED, {**SCORED, "max_tokens": 0}], ids=["plain", "echo", "prompt"])
@in_loop
async def test_stream_is_the_whole_answer_in_parts(more):
    fields = {"model": MODEL, "prompt": ["abc", "de"], "logprobs": 1, "stop": "a", **more}
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())
        async with openai.AsyncOpenAI(
            base_url=f"{ADDRESS}/v1", api_key="none", http_client=client_of(app), max_retries=0
        ) as client:
            whole = await client.completions.create(**fields)
            stream = await client.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(part.text for part in mine) == choice.text
        assert [part.finish_reason for part in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        for column in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
            parts = [getattr(part.logprobs, column) for part in mine if part.logprobs]
            assert list(chain.from_iterable(parts)) == getattr(choice.logprobs, column)
    assert chunks[-1].usage == whole.usage


@in_loop
async def test_streamed_echo_comes_first():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())
        async with openai.AsyncOpenAI(
            base_url=f"{ADDRESS}/v1", api_key="none", http_client=client_of(app), max_retries=0
        ) as client:
            stream = await client.completions.create(model=MODEL, prompt="abc", echo=True, stream=True)
            texts = [chunk.choices[0].text async for chunk in stream]
    assert texts == ["abc", "c", "b", "a", ""]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "prompt", "Field required"),
        ({"prompt": None}, "prompt", "must be a text"),
        ({"prompt": []}, "prompt", "cannot be empty"),
        ({"prompt": ""}, "prompt", "has no tokens"),
        ({"prompt": ["a", []]}, "prompt", "mixes"),
        ({"prompt": [1, "a"]}, "prompt", "mixes"),
        ({"prompt": [True]}, "prompt", "mixes"),
        ({"prompt": [[1.5]]}, "prompt", "mixes"),
        ({"prompt": [[]]}, "prompt", "has no tokens"),
        ({"prompt": [100]}, "prompt", "tokens from 0 to 99 only"),
        ({"prompt": [-1]}, "prompt", "tokens from 0 to 99 only"),
        ({"prompt": [10**40]}, "prompt", "tokens from 0 to 99 only"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
        ({"prompt": "a" * 256}, "prompt", "at most 255"),
        ({"prompt": "a", "max_tokens": 256}, "max_tokens", "at most 256"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "only with echo"),
        ({"prompt": "a", "best_of": 2}, "best_of", "Leave best_of out"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "leave it out"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "at most 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
    ],
)
@in_loop
async def test_wrong_field_is_refused_by_name(fields, param, words):
    status, body = await complete(fields)
    assert status == 400
    assert body["error"]["param"] == param
    assert words in body["error"]["message"]


@in_loop
async def test_limits_of_the_settings_hold():
    status, body = await complete({"prompt": "a" * 11}, max_prompt_tokens=10)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    status, body = await complete({"prompt": "a", "max_tokens": 11}, max_new_tokens=10)
    assert (status, body["error"]["param"]) == (400, "max_tokens")
    status, body = await complete({"prompt": "a", "best_of": 2, "n": 2})
    assert status == 200
