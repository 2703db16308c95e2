"""What drafts propose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from kit.families import save_tiny
from transformers import AutoModelForCausalLM

from layerstream.speculation.confidence import Confidence
from layerstream.speculation.drafts import LookupDraft, ModelDraft
from layerstream.speculation.tree import ROOT


def likeliest(ids: torch.Tensor, logits: torch.Tensor, count: int) -> list[tuple[int, float]]:
    best = logits.topk(count)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def test_lookup_proposes_what_followed_the_longest_and_latest_match() -> None:
    draft = LookupDraft()
    assert draft.propose([1, 2, 3, 4, 9, 1, 2], 2, likeliest).tokens == [3, 4]
    assert draft.propose([1, 2, 5, 1, 2, 6, 1, 2], 1, likeliest).tokens == [6]
    assert draft.propose([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], 3, likeliest).tokens == [5, 8, 1]


def test_lookup_proposes_nothing_without_a_match() -> None:
    assert LookupDraft().propose([1, 2, 3], 4, likeliest).tokens == []
    assert LookupDraft().propose([1], 4, likeliest).tokens == []


def test_a_model_proposes_its_own_continuation_whatever_was_refused_before(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    draft, text = ModelDraft(model), [5, 6, 7]
    for accepted in (0, 2, 4, 3, 1):
        expected = model.generate(
            input_ids=torch.tensor([text]), max_new_tokens=4, do_sample=False, eos_token_id=None
        )[0, len(text) :].tolist()
        tree = draft.propose(text, 4, likeliest)
        assert tree.tokens == expected
        assert tree.parents == [ROOT, 0, 1, 2]
        text = [*text, *expected[:accepted], 9]


def test_a_tree_holds_the_likeliest_ways(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    confidence, text = Confidence(), [5, 6, 7]
    tree = ModelDraft(model, width=3, confidence=confidence).propose(text, 9, likeliest)

    def chance(way: list[int]) -> float:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text + way])).logits[0, len(text) - 1 :]
        best = (logits / confidence.temperature).topk(ModelDraft.RANKED)
        chances = torch.full_like(logits, -torch.inf).scatter(1, best.indices, best.values.log_softmax(-1))
        return sum(float(chances[at, token]) for at, token in enumerate(way))

    inside = [chance(tree.tokens_to(number)) for number in range(len(tree))]
    assert len(tree) == 9 and len(set(map(tuple, map(tree.tokens_to, range(9))))) == 9
    assert inside == sorted(inside, reverse=True)
    first = [number for number, parent in enumerate(tree.parents) if parent == ROOT]
    assert 1 < len(first) <= 3


def test_a_draft_that_is_always_right_makes_one_long_way(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    confidence, text = Confidence(), [5, 6, 7]
    draft = ModelDraft(model, width=3, confidence=confidence)
    first = draft.propose(text, 12, likeliest)
    for _ in range(3):
        text = model.generate(
            input_ids=torch.tensor([text]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )[0].tolist()
        tree = draft.propose(text, 12, likeliest)
    assert confidence.temperature == 0.0625
    assert tree.depth > first.depth


class Unchanging(Confidence):
    """Learns nothing, so that trees can be compared."""

    def learn(self, scores: Sequence[float], chosen: int) -> None:
        pass


@pytest.mark.parametrize("family", ["llama", "mistral_sliding"])
@pytest.mark.parametrize("width", [1, 3])
def test_what_was_drafted_ahead_begins_the_next_tree(width: int, family: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    draft, text, seen = ModelDraft(model, width=width, confidence=Unchanging()), [5, 6, 7], []
    for accepted in (4, 2, 4, 0, 4, 4):
        tree = draft.propose(text, 4, likeliest)
        draft.go_on(24, likeliest, lambda: False)
        assert draft.ready(text) == 24
        deepest = max(range(len(tree)), key=lambda number: tree.depths[number])
        way = tree.tokens_to(deepest)[:accepted]
        # the target's own next token, if it agrees with the draft
        own = ModelDraft(model).propose([*text, *way], 1, likeliest).tokens
        text = [*text, *way, *own]
        seen.append(draft.ready(text))
        fresh = ModelDraft(model, width=width, confidence=Unchanging()).propose(text, 8, likeliest)
        found = draft.propose(text, 8, likeliest)
        assert sorted(map(found.tokens_to, range(8))) == sorted(map(fresh.tokens_to, range(8)))
    assert max(seen) > 8


def test_a_text_that_goes_on_differently_begins_a_new_tree(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    draft, text = ModelDraft(model), [5, 6, 7]
    tree = draft.propose(text, 4, likeliest)
    draft.go_on(20, likeliest, lambda: False)
    wrong = next(token for token in range(3, 90) if token not in tree.tokens)
    text = [*text, tree.tokens[0], wrong]
    assert draft.ready(text) == 0
    assert draft.propose(text, 4, likeliest) == ModelDraft(model).propose(text, 4, likeliest)


def test_drafting_ahead_ends_when_told_to(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    draft, answers = ModelDraft(model), iter([False, False, True])
    tree = draft.propose([5, 6, 7], 4, likeliest)
    draft.go_on(20, likeliest, lambda: next(answers))
    assert next(answers, None) is None
    text = [5, 6, 7, *tree.tokens]
    own = ModelDraft(model).propose(text, 1, likeliest).tokens
    assert draft.ready([*text, *own]) == 1  # of two tokens more, the target chose the first itself
