"""Whatever a body holds, the answer is a success or the client's mistake, and the server goes on.

To try more of them, set `LAYERSTREAM_FUZZ_EXAMPLES=10000` in the environment.
"""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.fake_service import FakeService
from kit.http_server import client_of

from layerstream.server.answering import CHAT, COMPLETIONS
from layerstream.server.app import build_app
from layerstream.server.settings import ServerSettings

EXAMPLES = int(os.environ.get("LAYERSTREAM_FUZZ_EXAMPLES", "300"))
HOURS_S = 6 * 3600

numbers = st.integers(-3, 40) | st.integers() | st.floats() | st.sampled_from([0, 1, 2**63, 10**400, 1e308])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
role = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot"])
parts = st.lists(st.fixed_dictionaries({"type": st.just("text") | anything, "text": st.text() | anything}))
message = st.fixed_dictionaries(
    {"role": role | anything, "content": st.text() | parts | anything},
    optional={"name": anything, "tool_calls": anything, "tool_call_id": anything},
)
tokens = st.lists(st.integers(-1, 120), max_size=6)
prompt = (
    st.text() | tokens | st.lists(st.text(max_size=5), max_size=4) | st.lists(tokens, max_size=4) | anything
)
field = {
    "model": st.just("fake/tiny") | anything,
    "messages": st.lists(message, max_size=3) | anything,
    "prompt": prompt,
    "n": st.integers(0, 4) | anything,
    "seed": numbers | anything,
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5) | anything,
    "stream": st.booleans() | anything,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | anything}) | anything,
    "temperature": st.floats(0, 2) | anything,
    "top_p": st.floats(0, 1) | anything,
    "max_tokens": st.integers(0, 30) | anything,
    "max_completion_tokens": st.integers(0, 30) | anything,
    "logprobs": st.booleans() | st.integers(0, 21) | anything,
    "top_logprobs": st.integers(0, 21) | anything,
    "echo": st.booleans() | anything,
    "best_of": st.integers(0, 3) | anything,
    "tools": anything,
    "tool_choice": anything,
    "response_format": anything,
    "logit_bias": anything,
    "frequency_penalty": anything,
    "top_k": anything,
    "user": anything,
}
plausible = {
    CHAT: {"messages": st.lists(message.filter(lambda turn: isinstance(turn["content"], str)), min_size=1)},
    COMPLETIONS: {"prompt": prompt},
}


def bodies(endpoint: str) -> st.SearchStrategy:
    some = st.dictionaries(st.sampled_from(sorted(field)), st.none(), max_size=5).flatmap(
        lambda names: st.fixed_dictionaries({**plausible[endpoint], **{name: field[name] for name in names}})
    )
    return some | st.fixed_dictionaries({}, optional=field) | anything


def mangled(body: object, cut: int, noise: bytes) -> bytes:
    raw = json.dumps(body).encode()
    return raw[: cut % (len(raw) + 1)] + noise + raw[cut % (len(raw) + 1) :]


@pytest.mark.timeout(HOURS_S if EXAMPLES > 1000 else 120)
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_any_body_is_a_success_or_the_clients_mistake(endpoint, caplog):
    seen: set[int] = set()

    async def ask(service: FakeService, raw: bytes) -> None:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            answer = await client.post(endpoint, content=raw)
            seen.add(answer.status_code)
            assert 200 <= answer.status_code < 300 or 400 <= answer.status_code < 500, answer.text
            assert "server_error" not in answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    with FakeService() as service:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(body=bodies(endpoint), cut=st.integers(0, 500), noise=st.just(b"") | st.binary(max_size=3))
        def try_one(body: object, cut: int, noise: bytes) -> None:
            asyncio.run(ask(service, mangled(body, cut, noise)))

        try_one()
        asyncio.run(ask(service, json.dumps({"prompt": "a", "messages": []}).encode()))
    assert {200, 400} <= seen
    assert not caplog.records
