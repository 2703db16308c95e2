"""A scored prompt: what transformers' own logits say about its tokens, within the memory that was counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.compare import reference
from kit.families import save_tiny
from kit.listener import Listener
from kit.storages import Alive, Watch
from kit.wide_llama import save_wide_llama
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.errors import PlanError
from layerstream.uses.serving.events import PromptScored
from layerstream.uses.serving.lanes import Lane
from layerstream.uses.serving.service import GenerationService
from layerstream.uses.serving.ticket import Entry

PROMPT_TOKENS, NEW, TOP = 90, 3, 4
WORKLOAD = ls.Workload(batch_size=4, prompt_tokens=PROMPT_TOKENS, new_tokens=16)


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def asked(ids: list[int], new_tokens: int = NEW) -> ls.GenerationRequest:
    return ls.GenerationRequest(prompt=ids, max_new_tokens=new_tokens, options={"eos_token_id": None})


def scored(listener: Listener) -> PromptScored:
    (event,) = [event for event in listener.heard if isinstance(event, PromptScored)]
    return event


@pytest.mark.parametrize("length", [1, 2, 66, PROMPT_TOKENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_chances_are_those_of_transformers_logits(
    dtype: torch.dtype, length: int, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    path, ids = save_tiny("llama", tmp_path, dtype), text(length)
    plain, given = reference(path), torch.tensor([ids])
    with torch.no_grad():
        logprobs = plain(given).logits[0, :-1].float().log_softmax(-1)
    options = {"do_sample": False, "eos_token_id": None, "logits_to_keep": 0}
    answer = plain.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, **options)
    with ls.load(path, budget="min", workload=WORKLOAD, prefix_cache="1 MiB") as streamed:
        service = GenerationService(streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir))
        listeners = [Listener() for _ in range(3)]
        # another request shares the sweep, and is not scored; the prompt is known when it is scored again
        service.submit(asked(text(40, seed=1)), listeners[0], top_logprobs=TOP)
        for listener in listeners[1:]:
            service.submit(asked(ids), listener, top_logprobs=TOP, scores_prompt=True)
        for listener in listeners:
            assert listener.wait().result.error is None
        service.close()
    assert not any(isinstance(event, PromptScored) for event in listeners[0].heard)
    for listener in listeners[1:]:
        assert listener.tokens == answer[0, length:].tolist()
        chances = scored(listener).chances
        assert [chance.token for chance in chances] == ids[1:]
        for chance, row in zip(chances, logprobs, strict=True):
            assert chance.logprob == row[chance.token].item()
            best = row.topk(TOP)
            assert chance.top == tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def test_a_scored_prompt_takes_at_most_what_is_counted(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, alive, plain = save_wide_llama(tmp_path), Alive(), GenerationService._generate

    def watched(service: GenerationService, lane: Lane, entry: Entry) -> None:
        with Watch(alive):
            plain(service, lane, entry)

    monkeypatch.setattr(GenerationService, "_generate", watched)
    with ls.load(path, budget="min", workload=WORKLOAD) as streamed:
        service = GenerationService(streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir))
        listener = Listener()
        service.submit(asked(text(PROMPT_TOKENS)), listener, top_logprobs=TOP, scores_prompt=True)
        assert listener.wait().result.error is None
        admission = service._admission
        service.close()
    plain_size, size = (
        admission.request_bytes(PROMPT_TOKENS, NEW, scores_prompt=scores) for scores in (False, True)
    )
    logits_bytes = PROMPT_TOKENS * 512 * 4
    assert size.inside - plain_size.inside >= logits_bytes
    assert logits_bytes < alive.peak_bytes <= admission.bytes_of([size])


def test_a_prompt_whose_logits_never_fit_is_refused(tiny_llama_dir: Path) -> None:
    workload = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=NEW)
    with ls.load(tiny_llama_dir, budget="min", workload=workload) as streamed:
        service = GenerationService(streamed)
        service._admission.room_bytes = service._admission.bytes_of(
            [service._admission.request_bytes(PROMPT_TOKENS, NEW)]
        )
        with pytest.raises(
            PlanError, match=r"prompt of 90 tokens with logprobs and 3 new ones take .*ask for less"
        ):
            service.submit(asked(text(PROMPT_TOKENS)), Listener(), top_logprobs=0, scores_prompt=True)
        listener = Listener()
        service.submit(asked(text(PROMPT_TOKENS)), listener, top_logprobs=0)
        listener.wait()
        service.close()
