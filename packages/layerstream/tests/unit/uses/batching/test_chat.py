"""Conversations in place of prompts: the tokens of the chat template, and the answers to them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from kit.tiny_llama import tiny_tokenizer
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.uses.batching.chat import encode_messages

CHATS = [
    [{"role": "user", "content": "The sea is"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And three?"},
    ],
]


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_equals_plain_generate_after_the_chat_template(packed: bool, tiny_llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        results = [
            ls.generate_many(
                streamed, [ls.GenerationRequest(messages=chat, max_new_tokens=12)], packed=packed
            )[0]
            for chat in CHATS
        ]
        for chat, result in zip(CHATS, results, strict=True):
            inputs = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            expected = streamed.model.generate(**inputs, max_new_tokens=12, do_sample=False)
            length = inputs["input_ids"].shape[1]
            assert (result.prompt_tokens, result.tokens) == (length, tuple(expected[0, length:].tolist()))


def test_chats_and_prompts_may_share_a_call(tiny_llama_dir: Path) -> None:
    requests = [
        ls.GenerationRequest(messages=CHATS[0], max_new_tokens=4),
        ls.GenerationRequest(prompt="[user] The sea is\n> ", max_new_tokens=4),
    ]
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        chat, prompt = ls.generate_many(streamed, requests)
    assert chat.tokens == prompt.tokens, "the template writes just this prompt"


def test_the_parts_of_a_content_are_lines_of_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    tokenizer = tiny_tokenizer()
    assert encode_messages(tokenizer, [{"role": "user", "content": parts}]) == encode_messages(
        tokenizer, [{"role": "user", "content": "one\ntwo"}]
    )


def test_a_tokenizer_without_a_template_is_named_with_the_request(tiny_llama_dir: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with (
        ls.load(tiny_llama_dir, budget="min") as streamed,
        pytest.raises(ls.PlanError, match="request 1: this checkpoint's tokenizer has no chat template"),
    ):
        ls.generate_many(streamed, ["hello", ls.GenerationRequest(messages=CHATS[0])], tokenizer=tokenizer)


def test_a_conversation_that_the_template_refuses_is_one_clear_error() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ls.PlanError, match="the chat template refuses these messages: roles must alternate"):
        encode_messages(tokenizer, CHATS[0])


def test_planning_a_chat_needs_the_tokenizer(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        with pytest.raises(ls.PlanError, match="request 0: the prompt is text: pass a tokenizer"):
            ls.plan_requests(streamed, [ls.GenerationRequest(messages=CHATS[0])])
        plan = ls.plan_requests(
            streamed, [ls.GenerationRequest(messages=CHATS[0])], tokenizer=tiny_tokenizer()
        )
    assert len(plan.micro_batches) == 1


def test_a_request_with_messages_survives_pickling() -> None:
    request = ls.GenerationRequest(messages=CHATS[1])
    assert pickle.loads(pickle.dumps(request)) == request


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append.__globals__ }}",
        "{{ messages.clear() }}",
        "{{ cycler.__init__.__globals__.os.system('touch marker') }}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ls.PlanError, match=r"the chat template refuses these messages: .*(unsafe|undefined)"):
        encode_messages(tokenizer, [{"role": "user", "content": "hello"}])
    assert list(tmp_path.iterdir()) == []
