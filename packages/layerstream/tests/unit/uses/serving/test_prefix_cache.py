"""Conversations that go on: what transformers gives for the same cache, within a limit of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.compare import reference
from kit.families import save_tiny
from kit.listener import Listener
from transformers import AutoTokenizer, DynamicCache

import layerstream as ls
from layerstream.architecture.compat import cache_argument
from layerstream.uses.serving.prefix_cache import PrefixCache
from layerstream.uses.serving.service import GenerationService

WORKLOAD = ls.Workload(batch_size=4, prompt_tokens=80, new_tokens=16)
NEW = 8
PLENTY = 1 << 24


class Turns:
    """What plain transformers answers, with one cache kept from turn to turn."""

    def __init__(self, path: Path) -> None:
        self._model = reference(path)
        self._cache = DynamicCache(config=self._model.config)
        self._known: list[int] = []

    def answer(self, ids: list[int]) -> list[int]:
        pairs = enumerate(zip(self._known, ids, strict=False))
        common = next((at for at, (a, b) in pairs if a != b), min(len(self._known), len(ids)))
        if common < len(self._known):
            self._cache.crop(common - len(self._known))
        given = torch.tensor([ids])
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
        # without a mask, transformers would mask what looks like padding
        options |= {"attention_mask": torch.ones_like(given), **cache_argument(self._model, self._cache)}
        found = self._model.generate(given, **options)
        self._known = found[0].tolist()[: self._cache.get_seq_length()]
        return found[0, len(ids) :].tolist()


def ask(service: GenerationService, ids: list[int], **settings: object) -> tuple[list[int], int]:
    listener = Listener()
    request = ls.GenerationRequest(
        prompt=ids,
        max_new_tokens=NEW,
        options={"eos_token_id": None},
        **settings,  # type: ignore[arg-type]
    )
    service.submit(request, listener)
    ended = listener.wait()
    assert ended.result.error is None
    return list(ended.result.tokens), ended.reused_tokens


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("draft", [None, "lookup"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_next_turn_is_what_transformers_gives_for_the_same_cache(
    dtype: torch.dtype, draft: str | None, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    path = save_tiny("llama", tmp_path, dtype)
    plain, first = Turns(path), text(20)
    with ls.load(path, budget="min", workload=WORKLOAD, draft=draft) as streamed:
        service = GenerationService(
            streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir), prefix_bytes=PLENTY
        )
        answer, reused = ask(service, first)
        assert (answer, reused) == (plain.answer(first), 0)
        second = [*first, *answer, *text(5, seed=1)]
        answer, reused = ask(service, second)
        assert (answer, reused) == (plain.answer(second), 27)
        # the user edits the second turn: the beginning is used again
        edited = [*second[:30], *text(6, seed=2)]
        answer, reused = ask(service, edited)
        assert (answer, reused) == (plain.answer(edited), 30)
        status = service.status()
        assert (status.reused_tokens, status.prompt_tokens) == (57, len(first) + len(second) + len(edited))
        assert 0 < status.prefix_bytes < PLENTY
        service.close()


def test_a_sliding_window_goes_on_but_is_not_cut(tiny_llama_dir: Path, tmp_path: Path) -> None:
    path = save_tiny("mistral_sliding", tmp_path, torch.float32)
    plain, first = Turns(path), text(20)
    with ls.load(path, budget="min", workload=WORKLOAD) as streamed:
        service = GenerationService(
            streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir), prefix_bytes=PLENTY
        )
        answer, _ = ask(service, first)
        assert answer == plain.answer(first)
        second = [*first, *answer, *text(5, seed=1)]
        answer, reused = ask(service, second)
        assert (answer, reused) == (plain.answer(second), 27)
        assert ask(service, [*second[:30], *text(6, seed=2)])[1] == 0
        service.close()


def test_a_model_with_a_state_keeps_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    path = save_tiny("jamba", tmp_path, torch.float32)
    with ls.load(path, budget="min", workload=WORKLOAD) as streamed:
        assert "recurrent state" in PrefixCache(streamed.model, PLENTY).refusal
        service = GenerationService(
            streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir), prefix_bytes=PLENTY
        )
        first = text(20)
        answer, _ = ask(service, first)
        assert ask(service, [*first, *answer, 5])[1] == 0
        service.close()


def test_the_oldest_make_way_for_newer_ones_and_for_requests(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min", workload=WORKLOAD) as streamed:
        service = GenerationService(streamed, prefix_bytes=PLENTY)
        ask(service, text(20))
        one = service.status().prefix_bytes
        service._prefixes._most_bytes = 2 * one
        for seed in range(1, 4):
            ask(service, text(20, seed=seed))
            assert service.status().prefix_bytes <= 2 * one
        assert ask(service, [*text(20, seed=3), 7])[1] == 20
        assert ask(service, [*text(20), 7])[1] == 0
        # a request that needs the room gets it
        room = service._admission.room_bytes
        size = service._admission.request_bytes(21, NEW)
        service._admission.room_bytes = size.kept + size.inside
        assert ask(service, text(21, seed=9))[1] == 0
        assert service.status().prefix_bytes <= one * 2
        service._admission.room_bytes = room
        service.close()
