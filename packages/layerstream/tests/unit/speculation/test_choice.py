"""Tokens are chosen as `generate()` chooses them, in any order of the positions."""

from __future__ import annotations

import torch

from layerstream.speculation.choice import Chooser

VOCABULARY = 50
CPU = torch.device("cpu")


def unchanged(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return logits


def some_logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def ids_of(length: int) -> torch.Tensor:
    return torch.zeros(1, length, dtype=torch.long)


def test_without_sampling_the_likeliest_token_is_chosen() -> None:
    logits = torch.tensor([0.0, 2.0, 1.5])
    chooser = Chooser(unchanged, do_sample=False, device=CPU)
    assert chooser.choose(ids_of(3), logits) == 1


def test_a_ranking_begins_with_the_choice_and_leaves_out_what_is_ruled_out() -> None:
    logits = torch.tensor([0.0, 2.0, -torch.inf, 1.5])
    for do_sample in (False, True):
        torch.manual_seed(1)
        chooser = Chooser(unchanged, do_sample=do_sample, device=CPU)
        ranked = chooser.rank(ids_of(3), logits, 4)
        assert len(ranked) == 3
        assert ranked[0][0] == chooser.choose(ids_of(3), logits)
        assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_samples_are_those_of_multinomial_and_so_is_the_generators_state_afterwards() -> None:
    rows = [some_logits(seed) for seed in range(20)]
    torch.manual_seed(7)
    expected = [int(torch.multinomial(row.softmax(-1)[None], 1)) for row in rows]
    state = torch.get_rng_state()
    torch.manual_seed(7)
    chooser = Chooser(unchanged, do_sample=True, device=CPU)
    chooser.choose(ids_of(5), rows[0])
    for at in (3, 1, 7, 2):  # a draft looks ahead, and the target comes back
        chooser.choose(ids_of(5 + at), some_logits(100 + at))
    found = [chooser.choose(ids_of(5 + at), row) for at, row in enumerate(rows)]
    chooser.choose(ids_of(5 + len(rows)), rows[0])  # drafted in vain
    chooser.finish(5 + len(rows))
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_have_the_targets_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    torch.manual_seed(0)
    chooser, draws = Chooser(unchanged, do_sample=True, device=CPU), 4000
    counts = torch.zeros(4)
    for at in range(draws):
        counts[chooser.choose(ids_of(1 + at), probabilities.log())] += 1
    chi_squared = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    assert chi_squared < 16.3  # 0.1 % of true samples exceed it, with 3 degrees of freedom


def test_processors_see_the_tokens_and_change_the_choice() -> None:
    def forbid_the_last(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits[0, ids[0, -1]] = -torch.inf
        return logits

    logits = torch.tensor([0.0, 2.0, 1.5])
    assert Chooser(forbid_the_last, do_sample=False, device=CPU).choose(torch.tensor([[1]]), logits) == 2
    assert logits[1] == 2.0
