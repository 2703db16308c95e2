"""A request is checked before anything runs, and the error says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import layerstream as ls


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": ""}, "empty: give text, at least one token id, or messages"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "both a prompt and messages"),
        ({"prompt": "", "messages": []}, "must be a list of turns"),
        ({"prompt": "", "messages": "hello"}, "must be a list of turns"),
        ({"prompt": "", "messages": ["hello"]}, "needs a role and a content"),
        ({"prompt": "", "messages": [{"content": "hello"}]}, "needs a role and a content"),
        ({"prompt": "", "messages": [{"role": "user"}]}, "text or a list of text parts; got None"),
        ({"prompt": "", "messages": [{"role": "user", "content": []}]}, "text or a list of text parts"),
        ({"prompt": "", "messages": [{"role": "user", "content": ["hello"]}]}, "got 'hello'"),
        (
            {"prompt": "", "messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "only text can be read; got .image",
        ),
        ({"prompt": []}, "empty"),
        ({"prompt": [1, -2]}, "token ids"),
        ({"prompt": [1.5]}, "token ids"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_new_tokens": True}, "max_new_tokens must be"),
        ({"num_beams": 0}, "num_beams must be"),
        ({"temperature": 0.7}, "needs do_sample"),
        ({"temperature": -1.0, "do_sample": True}, "above 0"),
        ({"seed": -1}, "seed must be an integer"),
        ({"stop": "x"}, "tuple of texts"),
        ({"stop": ("",)}, "none of them empty"),
        ({"options": {"max_length": 5, "streamer": None}}, "max_length, streamer"),
    ],
)
def test_a_malformed_request_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ls.PlanError, match=message):
        ls.GenerationRequest(**{"prompt": "hello", **wrong})


def test_a_request_that_the_model_cannot_take_is_named(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        with pytest.raises(ls.PlanError, match=r"request 1: the prompt has token 100000, but .* ends at 127"):
            ls.generate_many(streamed, ["fine", ls.GenerationRequest(prompt=[100_000])])
        with pytest.raises(ls.PlanError, match="max_rows must be at least 1"):
            ls.generate_many(streamed, ["fine"], max_rows=0)
        with pytest.raises(ls.PlanError, match="request 0: the prompt is text: pass a tokenizer"):
            ls.plan_requests(streamed, [ls.GenerationRequest(prompt="text")])


def test_requests_that_may_share_a_tensor_have_the_same_kind() -> None:
    def kind(**settings: Any) -> Any:
        return ls.GenerationRequest(prompt="hello", **settings).kind()

    assert kind(max_new_tokens=5) == kind(max_new_tokens=9, seed=4)
    assert kind(num_beams=2, max_new_tokens=5) != kind(num_beams=2, max_new_tokens=9)
    assert kind(do_sample=True, seed=1) != kind(do_sample=True, seed=2)
    assert kind(stop=("a",)) != kind()
    assert kind(options={"top_p": 0.5}) != kind(options={"top_p": 0.6})
