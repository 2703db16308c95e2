"""How scoring requests are tokenized, which are refused, and what the results hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.tiny_llama import tiny_tokenizer
from safetensors.torch import save_file
from torch import nn

import layerstream as ls
from layerstream.architecture.shared_prefix import _PrefixLayer


@pytest.fixture(scope="module")
def streamed(tiny_llama_dir: Path) -> Iterator[ls.StreamedModel]:
    with ls.load(tiny_llama_dir, budget="min", device="cpu") as model:
        yield model


def ids(text: str) -> list[int]:
    """Return the tokens of `text`, one per character."""
    tokens: list[int] = tiny_tokenizer()(text)["input_ids"]
    return tokens


def test_text_scores_as_its_tokens(streamed: ls.StreamedModel) -> None:
    by_text, by_ids = ls.score(
        streamed, [("The sky is", [" blue", " green"]), (ids("The sky is"), [ids(" blue"), ids(" green")])]
    )
    assert [score.sum for score in by_text.scores] == [score.sum for score in by_ids.scores]
    assert by_text.scores[0].prefix_tokens == 10
    assert by_text.scores[1].suffix_tokens == 6


def test_a_space_at_the_end_of_a_prefix_moves_to_its_suffixes(streamed: ls.StreamedModel) -> None:
    in_prefix, in_suffix = ls.score(streamed, [("The sky is ", ["blue"]), ("The sky is", [" blue"])])
    assert in_prefix.scores[0].sum == in_suffix.scores[0].sum
    assert in_prefix.scores[0].suffix_tokens == 5


def test_an_empty_prefix_is_the_bos_token(streamed: ls.StreamedModel) -> None:
    empty, bos = ls.score(streamed, [("", ["blue"]), ([1], [ids("blue")])])
    assert empty.scores[0].sum == bos.scores[0].sum


def test_the_bos_token_is_added_once(streamed: ls.StreamedModel) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    assert tokenizer("ab")["input_ids"][0] == 1, "this tokenizer puts BOS in front"
    (result,) = ls.score(streamed, [("ab", ["cd"])], tokenizer=tokenizer)
    assert (result.scores[0].prefix_tokens, result.scores[0].suffix_tokens) == (3, 2)
    (expected,) = ls.score(streamed, [([1, *ids("ab")], [ids("cd")])])
    assert result.scores[0].sum == expected.scores[0].sum


def test_logprob_is_the_sum_of_the_token_logprobs_and_none_with_a_head(streamed: ls.StreamedModel) -> None:
    (result,) = ls.score(streamed, [("a", ["b", "cd"])])
    for score in result.scores:
        assert score.logprob == score.sum == float(score.token_logprobs.sum(dtype="float64"))
    (with_head,) = ls.score(streamed, [("a", ["b"])], head=nn.Linear(64, 2))
    assert with_head.scores[0].logprob is None


def test_the_best_suffix_has_the_highest_sum_or_mean(streamed: ls.StreamedModel) -> None:
    (result,) = ls.score(streamed, [("a", ["b", "c", "dd"])])
    sums = [score.sum for score in result.scores]
    assert result.best == sums.index(max(sums))
    means = [score.mean for score in result.scores]
    assert result.best_by_mean == means.index(max(means))


def test_a_greedy_suffix_is_what_generate_returns(streamed: ls.StreamedModel) -> None:
    prefix = ids("once upon")
    inputs = torch.tensor([prefix])
    rows = streamed.generate(input_ids=inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    greedy = rows[0, len(prefix) :].tolist()
    other = [*greedy[:-1], (greedy[-1] + 1) % 100]
    (result,) = ls.score(streamed, [(prefix, [greedy, other])])
    assert [score.is_greedy for score in result.scores] == [True, False]


def test_no_requests_take_no_sweep(streamed: ls.StreamedModel) -> None:
    before = streamed.report().sweeps
    assert ls.score(streamed, []) == []
    assert streamed.report().sweeps == before


def test_results_are_reported_when_ready_and_returned_in_order(streamed: ls.StreamedModel) -> None:
    reported: list[int] = []
    results = ls.score(
        streamed, [([5], [[6, 7]])] * 4, max_rows=2, on_result=lambda result: reported.append(result.index)
    )
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert sorted(reported[:2]) == [0, 1]
    assert sorted(reported) == [0, 1, 2, 3]


def test_an_exception_in_a_callback_ends_everything(streamed: ls.StreamedModel) -> None:
    def refuse(_: object) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        ls.score(streamed, [([5], [[6, 7]])] * 4, on_result=refuse)
    assert ls.score(streamed, [([5], [[6]])])[0].error is None


def test_progress_follows_the_units_to_the_end(streamed: ls.StreamedModel) -> None:
    states: list[ls.ScoringProgress] = []
    ls.score(streamed, [([5, 6], [[6, 7], [8]])] * 4, max_rows=2, on_progress=states.append)
    assert [
        state.unit for state in states if state.sweep == 0 and state.done == 0 and state.unit < state.units
    ]
    assert {state.sweep for state in states} == {0, 1}
    assert states[-1].done == states[-1].total == 4
    assert states[-1].eta_s == 0.0
    assert all(state.eta_s is None or state.eta_s >= 0 for state in states)


REFUSED: dict[str, tuple[list[Any], str]] = {
    "no suffixes": ([("a", [])], "request 0 has no suffixes"),
    "an empty suffix": ([("a", ["b"]), ("a", ["b", ""])], "suffix 1 of request 1 is empty"),
    "an empty suffix of ids": ([([5], [[]])], "suffix 0 of request 0 is empty"),
    "not a pair": (["ab"], "request 0 is not a pair"),
    "suffixes as one text": ([("a", "bc")], "request 0 is not a pair"),
    "too long": ([([5] * 500, [[6] * 14])], "513 tokens long .* 512 positions"),
    "a token outside": ([([5, 128], [[6]])], "token 128, but the vocabulary ends at 127"),
    "no ids": ([([5, "a"], [[6]])], "neither text nor a sequence of token ids"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_malformed_request_is_refused_before_anything_runs(what: str, streamed: ls.StreamedModel) -> None:
    requests, message = REFUSED[what]
    before = streamed.report().sweeps
    with pytest.raises(ls.PlanError, match=message):
        ls.score(streamed, requests)
    assert streamed.report().sweeps == before


def test_the_last_token_of_a_suffix_is_not_an_input(streamed: ls.StreamedModel) -> None:
    """513 tokens can be scored with 512 positions, because the last one is only looked up."""
    assert ls.score(streamed, [([5] * 500, [[6] * 13])])[0].error is None
    with pytest.raises(ls.PlanError, match="513 tokens long"):
        ls.score(streamed, [([5] * 500, [[6] * 13])], head=nn.Linear(64, 2))


def test_an_empty_prefix_without_a_bos_token_is_refused(
    streamed: ls.StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed.model.config, "bos_token_id", None)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(ls.PlanError, match="no BOS token"):
        ls.score(streamed, [("", ["blue"])], tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda: nn.Linear(63, 8), "rows of 64 numbers"),
        (lambda: nn.Flatten(0), "is needed"),
        (lambda: 7, "got int"),
    ],
)
def test_a_head_of_the_wrong_shape_is_refused(
    head: Callable[[], Any], message: str, streamed: ls.StreamedModel
) -> None:
    with pytest.raises(ls.PlanError, match=message):
        ls.score(streamed, [([5], [[6]])], head=head())


FILES: dict[str, tuple[dict[str, torch.Tensor], type[Exception], str]] = {
    "too wide": ({"weight": torch.ones(8, 65)}, ls.PlanError, "rows of 64 numbers"),
    "a bias of another size": (
        {"weight": torch.ones(8, 64), "bias": torch.ones(7)},
        ls.PlanError,
        "one value per output",
    ),
    "not a number": ({"weight": torch.full((8, 64), float("nan"))}, ls.PlanError, "not finite"),
    "whole numbers": ({"weight": torch.ones(8, 64, dtype=torch.int32)}, ls.PlanError, "floating-point"),
    "two matrices": ({"a": torch.ones(8, 64), "b": torch.ones(8, 64)}, ls.TensorMissingError, "one matrix"),
    "none": ({"bias": torch.ones(8)}, ls.TensorMissingError, "one matrix"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_without_a_usable_head_is_refused(
    what: str, streamed: ls.StreamedModel, tmp_path: Path
) -> None:
    tensors, kind, message = FILES[what]
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(kind, match=message):
        ls.score(streamed, [([5], [[6]])], head=tmp_path / "head.safetensors")


def test_a_missing_or_broken_head_file_is_reported(streamed: ls.StreamedModel, tmp_path: Path) -> None:
    with pytest.raises(ls.CheckpointNotFoundError, match="no head at"):
        ls.score(streamed, [([5], [[6]])], head=tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"something else")
    with pytest.raises(ls.ShardCorruptError, match="not a safetensors file"):
        ls.score(streamed, [([5], [[6]])], head=tmp_path / "broken.safetensors")


class _Diverging(nn.Module):
    """Returns NaN for rows that are not zero."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[:, :2] * float("nan") if rows.any() else rows[:, :2]


def test_outputs_that_are_not_finite_are_the_requests_error(streamed: ls.StreamedModel) -> None:
    (result,) = ls.score(streamed, [([5], [[6]])], head=_Diverging())
    assert isinstance(result.error, ls.ScoreError)
    assert result.scores == ()
    assert result.best is None


class _FailsOnce(nn.Module):
    """Raises at the first row that is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.has_failed = False

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.any() and not self.has_failed:
            self.has_failed = True
            raise RuntimeError("not this one")
        return rows[:, :2]


def test_a_request_that_fails_does_not_affect_the_others(streamed: ls.StreamedModel) -> None:
    first, second = ls.score(streamed, [([5], [[6], [7]]), ([8], [[9]])], head=_FailsOnce(), max_rows=2)
    assert "not this one" in str(first.error)
    assert second.error is None


def test_a_failing_prefix_is_its_requests_error(
    streamed: ls.StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its suffixes fail too, since they have nothing to read; the request reports the cause."""
    block = streamed.model.model.layers[2]
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("out of memory, say")

    handle = block.register_forward_pre_hook(fail)
    try:
        first, second = ls.score(streamed, [([5, 6], [[6, 7]]), ([8], [[9, 10]])], max_rows=2)
    finally:
        handle.remove()
    assert "out of memory, say" in str(first.error)
    assert second.error is None


def test_the_norm_and_the_head_see_only_the_scored_positions(streamed: ls.StreamedModel) -> None:
    """A prefix's last token, and all tokens of a suffix but the last, which is only looked up."""
    seen: dict[str, list[int]] = {"norm": [], "head": []}
    handles = [
        streamed.model.model.norm.register_forward_hook(
            lambda _, args, __: seen["norm"].append(args[0].shape[-2])
        ),
        streamed.model.lm_head.register_forward_hook(
            lambda _, args, __: seen["head"].append(args[0].shape[-2])
        ),
    ]
    try:
        ls.score(streamed, [([5] * 20, [[6, 7, 8], [9]])])
        assert sorted(seen["norm"]) == [1, 2]
        assert sorted(seen["head"]) == [1, 2]
        seen["norm"].clear()
        seen["head"].clear()
        ls.score(streamed, [([5] * 20, [[6, 7, 8], [9]])], head=nn.Linear(64, 8))
        assert sorted(seen["norm"]) == [0, 1, 1]
        assert seen["head"] == []
    finally:
        for handle in handles:
            handle.remove()


def test_a_prefix_is_dropped_after_its_last_suffix(
    streamed: ls.StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than one layer of one request is kept of the keys and values, for any number of requests."""
    lent: list[Any] = []
    held: list[int] = []
    init, lend = _PrefixLayer.__init__, _PrefixLayer.lend

    def keep(self: Any, *args: Any) -> None:
        init(self, *args)
        lent.append(self)

    def count(self: Any) -> Any:
        held.append(sum(layer.keys is not None for layer in lent))
        return lend(self)

    monkeypatch.setattr(_PrefixLayer, "__init__", keep)
    monkeypatch.setattr(_PrefixLayer, "lend", count)
    ls.score(streamed, [([5] * 9, [[6, 7, 8], [9, 10]]), ([5] * 7, [[6, 7], [9, 10]])], max_rows=2)
    assert held == [1] * 4 * streamed.model.config.num_hidden_layers
    assert all(layer.keys is None for layer in lent)


def test_the_plan_predicts_the_number_of_sweeps(streamed: ls.StreamedModel) -> None:
    requests = [([5] * 30, [[6, 7]])] * 50
    planned = ls.plan_scores(streamed, requests)
    streamed.reset_report()
    ls.score(streamed, requests)
    assert streamed.report().sweeps == len(planned.sweeps)
