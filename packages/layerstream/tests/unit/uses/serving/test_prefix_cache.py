"""Conversations that go on: what transformers gives for the same cache, within a limit of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.compare import reference
from kit.families import save_tiny
from kit.listener import Listener
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel

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
    with ls.load(path, budget="min", workload=WORKLOAD, draft=draft, prefix_cache=PLENTY) as streamed:
        service = GenerationService(streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir))
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
    with ls.load(path, budget="min", workload=WORKLOAD, prefix_cache=PLENTY) as streamed:
        service = GenerationService(streamed, tokenizer=AutoTokenizer.from_pretrained(tiny_llama_dir))
        answer, _ = ask(service, first)
        assert answer == plain.answer(first)
        second = [*first, *answer, *text(5, seed=1)]
        answer, reused = ask(service, second)
        assert (answer, reused) == (plain.answer(second), 27)
        assert ask(service, [*second[:30], *text(6, seed=2)])[1] == 0
        service.close()


def test_a_model_with_a_state_keeps_nothing_and_says_so(tiny_llama_dir: Path, tmp_path: Path) -> None:
    path = save_tiny("jamba", tmp_path, torch.float32)
    with ls.load(path, budget="min", workload=WORKLOAD, prefix_cache=PLENTY) as streamed:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
        with pytest.warns(UserWarning, match=r"recurrent state.*leave out prefix_cache, for which 16 MiB"):
            service = GenerationService(streamed, tokenizer=tokenizer)
        first = text(20)
        answer, _ = ask(service, first)
        assert ask(service, [*first, *answer, 5])[1] == 0
        service.close()


def test_without_a_line_in_the_plan_nothing_is_kept(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min", workload=WORKLOAD) as streamed:
        service = GenerationService(streamed)
        first = text(20)
        answer, _ = ask(service, first)
        assert ask(service, [*first, *answer, 5])[1] == 0
        service.close()


def filled(model: PreTrainedModel, tokens: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([text(tokens)]), past_key_values=cache)
    return cache


def test_the_oldest_make_way_before_a_newer_one_is_kept(tiny_llama_dir: Path) -> None:
    model = reference(tiny_llama_dir)
    one_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in filled(model, 20).layers)
    prefixes = PrefixCache(model, 2 * one_bytes)
    texts = [text(20, seed=seed) for seed in range(3)]
    prefixes.put(texts[0], filled(model, 20))
    prefixes.put(texts[1], filled(model, 20))
    assert prefixes.num_bytes == 2 * one_bytes
    # half of the first is used once more, so the second is now the oldest
    assert prefixes.take([*texts[0][:18], 1]).get_seq_length() == 18
    prefixes.put(texts[2], filled(model, 20))
    assert prefixes.num_bytes == 2 * one_bytes
    lengths = [prefixes.take([*ids, 1]).get_seq_length() for ids in texts]
    assert (lengths, prefixes.num_bytes) == ([20, 0, 20], 0)


def test_a_text_larger_than_the_limit_is_not_kept(tiny_llama_dir: Path) -> None:
    model = reference(tiny_llama_dir)
    prefixes = PrefixCache(model, 100)
    prefixes.put(text(20), filled(model, 20))
    assert prefixes.num_bytes == 0


def test_what_is_kept_holds_no_more_memory_than_it_counts(tmp_path: Path) -> None:
    model = reference(save_tiny("mistral_sliding", tmp_path, torch.float32))
    prefixes, cache = PrefixCache(model, PLENTY), filled(model, 60)
    views = [layer.keys for layer in cache.layers]
    assert any(view.untyped_storage().nbytes() > view.nbytes for view in views), "a window is a view of all"
    prefixes.put(text(60), cache)
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == prefixes.num_bytes
