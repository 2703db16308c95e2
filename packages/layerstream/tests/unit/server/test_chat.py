"""Chats through the `openai` client: whole and streamed answers, and every setting that a body has."""

from __future__ import annotations

import openai
import pytest
from fastapi import FastAPI
from kit.fake_service import FakeService
from kit.http_server import ADDRESS, client_of, in_loop

from layerstream.server.app import build_app
from layerstream.server.settings import ServerSettings

HELLO = [{"role": "user", "content": "hello"}]
REPLIES = {"hello": "good day", "long": "a" * 60, "tail": "xxSTOPyy"}
MODEL = "fake/tiny"


def openai_client(app: FastAPI, api_key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{ADDRESS}/v1", api_key=api_key, http_client=client_of(app), max_retries=0
    )


@in_loop
async def test_chat_answers_with_text_reason_and_usage():
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "good day"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    num_prompt = len("[user] hello\n> ")
    num_answer = len("good day") + 1
    assert answer.usage.prompt_tokens == num_prompt
    assert answer.usage.completion_tokens == num_answer
    assert answer.usage.total_tokens == num_prompt + num_answer


@in_loop
async def test_chat_without_sampling_settings_is_greedy():
    with FakeService() as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            await client.chat.completions.create(model=MODEL, messages=HELLO, seed=7)
            await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
            await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=1e-9)
            await client.chat.completions.create(model=MODEL, messages=HELLO, top_p=0)
    assert [request.do_sample for request in service.submitted] == [False] * 4
    assert all(request.temperature is None and not request.options for request in service.submitted)


@in_loop
async def test_chat_passes_temperature_top_p_and_seed_on():
    with FakeService() as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            await client.chat.completions.create(
                model=MODEL, messages=HELLO, temperature=0.5, top_p=0.9, seed=-1
            )
            await client.chat.completions.create(model=MODEL, messages=HELLO, top_p=0.9)
    first, second = service.submitted
    assert first.do_sample
    assert (first.temperature, first.options, first.seed) == (0.5, {"top_p": 0.9}, 2**63 - 1)
    assert second.do_sample
    assert (second.temperature, second.options, second.seed) == (None, {"top_p": 0.9}, None)


@in_loop
async def test_n_answers_have_their_own_seeds_and_count_the_prompt_once():
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            answer = await client.chat.completions.create(
                model=MODEL, messages=HELLO, n=3, seed=5, temperature=1
            )
    texts = [choice.message.content for choice in answer.choices]
    assert texts == ["good day seed 5", "good day seed 6", "good day seed 7"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len("[user] hello\n> ")
    assert answer.usage.completion_tokens == 3 * (len("good day seed 5") + 1)


@in_loop
async def test_usage_tells_how_much_of_the_prompt_was_cached():
    with FakeService(replies=REPLIES, reused=[7, 9, 5]) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            one = await client.chat.completions.create(model=MODEL, messages=HELLO)
            # the prompt counts once: what one of the answers computed is not cached
            two = await client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
            none = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert [answer.usage.prompt_tokens_details.cached_tokens for answer in (one, two, none)] == [7, 5, 0]


@in_loop
async def test_the_usage_of_a_stream_tells_how_much_of_the_prompt_was_cached():
    with FakeService(replies=REPLIES, reused=[7]) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 7


@in_loop
async def test_answer_ends_at_its_length():
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            for limit in ({"max_tokens": 4}, {"max_completion_tokens": 4}):
                answer = await client.chat.completions.create(model=MODEL, messages=HELLO, **limit)
                assert answer.choices[0].message.content == "good"
                assert answer.choices[0].finish_reason == "length"


@in_loop
async def test_answer_without_a_length_takes_the_default_or_what_the_context_has_left():
    with FakeService(replies=REPLIES, context_tokens=100) as service:
        app = build_app(service, settings=ServerSettings(default_new_tokens=20))
        roomy = build_app(service, settings=ServerSettings())
        long = [{"role": "user", "content": "long"}]
        async with openai_client(app) as client, openai_client(roomy) as other:
            await client.chat.completions.create(model=MODEL, messages=long)
            await other.chat.completions.create(model=MODEL, messages=long)
    assert [request.max_new_tokens for request in service.submitted] == [20, 100 - len("[user] long\n> ")]


@pytest.mark.parametrize("stop", ["STOP", ["nothing", "STOP"]])
@in_loop
async def test_stop_text_ends_the_answer_and_is_left_out(stop):
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            messages = [{"role": "user", "content": "tail"}]
            answer = await client.chat.completions.create(model=MODEL, messages=messages, stop=stop)
    assert answer.choices[0].message.content == "xx"
    assert answer.choices[0].finish_reason == "stop"


@in_loop
async def test_logprobs_name_each_token_and_the_likeliest_ones():
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            answer = await client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2
            )
            plain = await client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=2, logprobs=True
            )
    entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["g", "o"]
    assert entries[0].bytes == [ord("g")]
    assert [(top.token, top.logprob) for top in entries[0].top_logprobs] == [("g", -0.25), ("h", -0.5)]
    assert [entry.top_logprobs for entry in plain.choices[0].logprobs.content] == [[], []]


@in_loop
async def test_stream_brings_role_parts_reason_and_usage_in_this_order():
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == "good day"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len("good day") + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@in_loop
async def test_stream_of_n_answers_tells_them_apart_by_index():
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, n=2, seed=5, temperature=1
            )
            texts = {0: "", 1: ""}
            async for chunk in stream:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "good day seed 5", 1: "good day seed 6"}


@in_loop
async def test_streamed_logprobs_are_those_of_the_whole_answer():
    settings = {"model": MODEL, "messages": HELLO, "logprobs": True, "top_logprobs": 1}
    with FakeService(replies=REPLIES) as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            whole = await client.chat.completions.create(**settings)
            stream = await client.chat.completions.create(**settings, stream=True)
            entries = []
            async for chunk in stream:
                logprobs = chunk.choices[0].logprobs
                entries += logprobs.content if logprobs else []
    assert entries == whole.choices[0].logprobs.content


@in_loop
async def test_the_clients_own_stream_helper_understands_the_chunks():
    with FakeService(replies=REPLIES) as service:
        async with (
            openai_client(build_app(service, settings=ServerSettings())) as client,
            client.chat.completions.stream(model=MODEL, messages=HELLO) as stream,
        ):
            answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "good day"


@in_loop
async def test_messages_may_be_parts_and_have_further_keys():
    messages = [
        {"role": "developer", "content": "short", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
    ]
    with FakeService() as service:
        async with openai_client(build_app(service, settings=ServerSettings())) as client:
            await client.chat.completions.create(model=MODEL, messages=messages)
        prompt = service.tokenizer.decode(list(service.submitted[0].prompt))
    assert prompt == "[system] short\n[user] one\ntwo\n[assistant] \n> "


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-9"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["hello"]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "hello"}]}, 400, "messages.0.role"),
        ({"messages": [{"content": "hello"}]}, 400, "messages.0.role"),
        ({"messages": ["hello"]}, 400, "messages.0"),
        ({"temperature": 2.5}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": -1}, 400, "top_p"),
        ({"n": 0}, 400, "n"),
        ({"n": 17}, 400, "n"),
        ({"n": True}, 400, "n"),
        ({"seed": 2**63}, 400, "seed"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**30}, 400, "max_tokens"),
        ({"max_tokens": 250}, 400, "max_tokens"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"stop": "x" * 129}, 400, "stop"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"audio": {"voice": "alloy"}}, 400, "audio"),
        ({"logit_bias": {"50": 1}}, 400, "logit_bias"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"ignore_eos": True}, 400, "ignore_eos"),
        ({"repetition_penalty": True}, 400, "repetition_penalty"),
        ({"stream_options": 3}, 400, "stream_options"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_wrong_field_is_refused_by_name_and_nothing_is_submitted(fields, status, param, stream):
    body = {"model": MODEL, "messages": HELLO, "stream": stream, **fields}
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param.rpartition(".")[2] in error["message"]
    assert service.submitted == []


@in_loop
async def test_picture_is_refused_with_what_can_be_read():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]}]
    with FakeService() as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        'messages.0.content: has a part that is not {"type": "text", "text": "..."}, and only text can be '
        "read; got one of type 'image_url'"
    )


@in_loop
async def test_neutral_values_and_unknown_fields_change_nothing():
    body = {
        "messages": HELLO,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "modalities": ["text"],
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "something_new": [1, 2],
        "stop": None,
        "n": None,
    }
    with FakeService(replies=REPLIES) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "good day"


@in_loop
async def test_template_that_refuses_a_conversation_is_the_clients_mistake():
    with FakeService() as service:
        service.tokenizer.chat_template = "{{ raise_exception('turns must alternate') }}"
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post("/v1/chat/completions", json={"messages": HELLO})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith("turns must alternate")
    assert answer.json()["error"]["param"] == "messages"


@in_loop
async def test_openai_client_raises_its_own_errors():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(api_key="secret"))
        async with openai_client(app) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model=MODEL, messages=HELLO)
        async with openai_client(app, "secret") as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="other", messages=HELLO)
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.chat.completions.create(model=MODEL, messages=HELLO, n=99)
            models = [model async for model in client.models.list()]
            one = await client.models.retrieve(MODEL)
    assert missing.value.code == "model_not_found"
    assert wrong.value.param == "n"
    assert [model.id for model in models] == [one.id] == [MODEL]
    assert one.context_tokens == 256
