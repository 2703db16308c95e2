"""Unpacked requests equal requests alone, packed ones `generate()` on the same padded batch, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.budgets import load
from kit.compare import reference
from kit.families import save_tiny
from kit.tasks import settled_reads
from transformers import AutoTokenizer, PreTrainedModel

import layerstream as ls

FAMILIES = ("llama", "gpt2", "mistral_sliding", "qwen3_moe", "jamba")
Request = ls.GenerationRequest


def ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(100 * seed + length)
    return torch.randint(5, 120, (length,), generator=generator).tolist()


def mixed_requests() -> list[ls.GenerationRequest]:
    """Return prompts of different lengths with settings of every kind."""
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "options": {"top_k": 20}}
    return [
        Request(prompt=ids(7), max_new_tokens=6),
        Request(prompt=ids(4), max_new_tokens=9, seed=3, **sampling),
        Request(prompt=ids(5), max_new_tokens=3),
        Request(prompt=ids(9), max_new_tokens=4, num_beams=3),
        Request(prompt=ids(6), max_new_tokens=9, seed=3, **sampling),
        Request(prompt=ids(3), max_new_tokens=7, seed=8, **sampling),
        Request(prompt=ids(8), max_new_tokens=4, num_beams=3),
        Request(prompt=ids(9, 1), max_new_tokens=6, options={"repetition_penalty": 1.3}),
    ]


def generated(plain: PreTrainedModel, members: Sequence[ls.GenerationRequest]) -> list[list[int]]:
    """Return what transformers' own `generate()` returns for the left-padded batch of `members`."""
    longest = max(len(request.prompt) for request in members)
    rows = [[0] * (longest - len(request.prompt)) + list(request.prompt) for request in members]
    mask = [[0] * (longest - len(request.prompt)) + [1] * len(request.prompt) for request in members]
    first = members[0]
    settings: dict[str, Any] = {"do_sample": first.do_sample, "num_beams": first.num_beams, **first.options}
    if first.temperature is not None:
        settings["temperature"] = first.temperature
    if first.seed is not None:
        torch.manual_seed(first.seed)
    output = plain.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=max(request.max_new_tokens for request in members),
        pad_token_id=0,
        **settings,
    )
    answers = output[:, longest:].tolist()
    return [
        until_end(answer[: request.max_new_tokens]) for answer, request in zip(answers, members, strict=True)
    ]


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unpacked_equals_alone(family: str, dtype: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, getattr(torch, dtype))
    plain, requests = reference(path), mixed_requests()
    with load(path, dtype, "min") as streamed:
        results = ls.generate_many(streamed, requests, packed=False)
    assert [list(result.tokens) for result in results] == [
        generated(plain, [request])[0] for request in requests
    ]
    assert [result.request for result in results] == requests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_generate_on_the_same_padded_batch(family: str, dtype: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, getattr(torch, dtype))
    plain, requests = reference(path), mixed_requests()
    with load(path, dtype, "min") as streamed:
        plan = ls.plan_requests(streamed, requests, max_rows=64)
        results = ls.generate_many(streamed, requests, max_rows=64)
    assert [micro_batch.requests for micro_batch in plan.micro_batches] == [
        (0, 2),
        (1, 4),
        (3, 6),
        (5,),
        (7,),
    ]
    for micro_batch in plan.micro_batches:
        expected = generated(plain, [requests[index] for index in micro_batch.requests])
        assert [list(results[index].tokens) for index in micro_batch.requests] == expected


def test_as_many_weights_are_read_as_the_longest_request_needs(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    longest = Request(prompt=ids(9), max_new_tokens=9)
    requests = [Request(prompt=ids(3 + n % 7, n), max_new_tokens=1 + n % 9) for n in range(20)]
    reads = []
    for members, packed in (([longest], True), ([longest, *requests], True), ([longest, *requests], False)):
        with load(path, "auto", "min") as streamed:
            ls.generate_many(streamed, members, packed=packed, max_rows=64)
            reads.append((settled_reads(streamed), streamed.report().sweeps))
    assert reads[0] == reads[1] == reads[2]
    assert reads[0][1] == 9


def test_sampling_without_a_seed_depends_on_the_callers_generator(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    requests = [Request(prompt=ids(5), max_new_tokens=6, do_sample=True)] * 3
    samples = []
    with load(path, "auto", "min") as streamed:
        for _ in range(2):
            torch.manual_seed(77)
            samples.append([result.tokens for result in ls.generate_many(streamed, requests, packed=False)])
        results = ls.generate_many(streamed, requests, packed=False)
        (again,) = ls.generate_many(
            streamed, [Request(prompt=ids(5), max_new_tokens=6, do_sample=True, seed=results[1].seed)]
        )
    assert samples[0] == samples[1]
    assert len(set(samples[0])) == 3
    assert again.tokens == results[1].tokens


def test_text_is_tokenized_and_decoded_with_the_checkpoints_tokenizer(tiny_llama_dir: Path) -> None:
    plain, tokenizer = reference(tiny_llama_dir), AutoTokenizer.from_pretrained(tiny_llama_dir)
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        (result,) = ls.generate_many(streamed, ["hello"])
    whole = plain.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=128, do_sample=False)
    assert result.text == tokenizer.decode(whole[0][5:], skip_special_tokens=True)
    assert result.prompt_tokens == 5


def test_a_stop_text_ends_the_answer_and_is_part_of_it(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        (whole,) = ls.generate_many(streamed, [Request(prompt="hello", max_new_tokens=40)])
        assert whole.text is not None
        stop = whole.text[5:7]
        ended = Request(prompt="hello", max_new_tokens=40, stop=(stop,))
        for packed in (True, False):
            results = ls.generate_many(
                streamed, [ended, Request(prompt="hell", max_new_tokens=40, stop=(stop,))], packed=packed
            )
            assert results[0].text == whole.text[: whole.text.index(stop) + 2]
            assert results[0].finish_reason == "stop"


def test_results_are_reported_when_ready_and_returned_in_order(tiny_llama_dir: Path) -> None:
    requests = [Request(prompt=ids(4, n), max_new_tokens=n) for n in (9, 2, 5)]
    reported: list[int] = []
    states: list[ls.BatchProgress] = []
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        results = ls.generate_many(
            streamed,
            requests,
            packed=False,
            max_rows=64,
            on_result=lambda result: reported.append(result.index),
            on_progress=states.append,
        )
    assert reported == [1, 2, 0]
    assert [result.index for result in results] == [0, 1, 2]
    assert [state.done for state in states] == sorted(state.done for state in states)
    last = states[-1]
    assert (last.done, last.total, last.sweeps, last.eta_s) == (3, 3, 9, 0.0)
    assert last.tokens == last.most_tokens == sum(len(result.tokens) for result in results) == 16


@pytest.mark.parametrize("callback", ["on_result", "on_progress"])
def test_an_exception_in_a_callback_ends_everything_and_is_raised(
    tiny_llama_dir: Path, callback: str
) -> None:
    def refuse(_: object) -> None:
        raise ArithmeticError("not another one")

    with ls.load(tiny_llama_dir, budget="min") as streamed:
        with pytest.raises(ArithmeticError, match="not another"):
            ls.generate_many(
                streamed, [Request(prompt=ids(4), max_new_tokens=5)] * 3, packed=False, **{callback: refuse}
            )
        assert len(ls.generate_many(streamed, [Request(prompt=ids(4), max_new_tokens=5)])[0].tokens) > 0


def test_a_request_that_fails_has_its_error_and_the_others_their_answers(tmp_path: Path) -> None:
    """The model refuses what layerstream cannot check in advance."""
    path = save_tiny("llama", tmp_path)
    plain = reference(path)
    good = [Request(prompt=ids(n), max_new_tokens=4) for n in (4, 6)]
    bad = Request(prompt=ids(5), max_new_tokens=4, options={"cache_implementation": "no such thing"})
    with load(path, "auto", "min") as streamed:
        results = ls.generate_many(streamed, [good[0], bad, good[1]])
        plan = ls.plan_requests(streamed, [good[0], bad, good[1]])
    assert isinstance(results[1].error, ValueError) and results[1].finish_reason == "error"
    for micro_batch in plan.micro_batches:
        if 1 not in micro_batch.requests:
            expected = generated(plain, [[good[0], bad, good[1]][index] for index in micro_batch.requests])
            assert [list(results[index].tokens) for index in micro_batch.requests] == expected


def test_assisted_generation_and_prompt_lookup_share_sweeps(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "target")
    draft = reference(save_tiny("llama_tied", tmp_path / "draft", seed=7))
    plain = reference(path)
    requests = [
        Request(prompt=ids(5), max_new_tokens=6, options={"assistant_model": draft}),
        Request(prompt=ids(6), max_new_tokens=6, options={"prompt_lookup_num_tokens": 3}),
        Request(prompt=ids(7), max_new_tokens=6),
        Request(prompt=ids(8), max_new_tokens=6),
    ]
    with load(path, "auto", "min") as streamed:
        results = ls.generate_many(streamed, requests, max_rows=64)
    expected = [generated(plain, [request])[0] for request in requests[:2]] + generated(plain, requests[2:])
    assert [list(result.tokens) for result in results] == expected


def test_no_requests_give_no_results(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        assert ls.generate_many(streamed, []) == []
