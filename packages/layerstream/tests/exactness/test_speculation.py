"""With a draft, a streamed model generates token for token what plain transformers generates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.attachments import Recorder
from kit.compare import reference
from kit.families import save_tiny
from transformers import PreTrainedModel

import layerstream as ls
from layerstream.planning.drafting import MOST_DRAFTED
from layerstream.spec.speculation import VerifiedTokens
from layerstream.speculation.drafts import GoOn, RankTokens
from layerstream.testing import FakeAsyncRuntime

NEW_TOKENS = 24
WORKLOAD = ls.Workload(prompt_tokens=16, new_tokens=NEW_TOKENS)
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95}
FAMILIES = (
    "llama",
    "llama_tied",
    "gpt2",
    "gemma2",
    "mixtral",
    "qwen3",
    "mistral_sliding",
    "falcon_alibi",
)


def prompt(length: int = 9, repeats: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(3)).repeat(1, repeats)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tokens(model: PreTrainedModel | ls.StreamedModel, **settings: Any) -> tuple[list[int], torch.Tensor]:
    """Return the tokens that a model generates with one seed, and the generator's state afterwards."""
    torch.manual_seed(11)
    given = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **prompt(), **settings}
    with torch.no_grad():
        found = model.generate(**given)
    return found[0].tolist(), torch.get_rng_state()


def alone(plain: PreTrainedModel, request: ls.GenerationRequest) -> list[int]:
    """Return the new tokens of one request, whose prompt is tokens, on a plain model."""
    ids = torch.tensor([request.prompt])
    if request.seed is not None:
        torch.manual_seed(request.seed)
    found = plain.generate(input_ids=ids, max_new_tokens=request.max_new_tokens, **request.generate_options())
    return found[0, ids.shape[1] :].tolist()


def assert_equal(plain: PreTrainedModel, streamed: ls.StreamedModel, **settings: Any) -> None:
    expected, state = tokens(plain, **settings)
    found, found_state = tokens(streamed, **settings)
    assert found == expected
    assert torch.equal(found_state, state)


@pytest.fixture(scope="module")
def other_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other weights, which is right by chance only."""
    return save_tiny("llama", tmp_path_factory.mktemp("draft"), torch.float32, seed=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_their_own_copy_as_the_draft(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, dtype)
    plain = reference(path)
    with ls.load(path, budget="min", workload=WORKLOAD, draft=path, draft_tokens=8) as streamed:
        for settings in ({}, SAMPLING):
            assert_equal(plain, streamed, **settings)
        speculation = streamed.report().speculation
    assert speculation is not None
    assert speculation.tokens_per_sweep > 4
    assert speculation.acceptance > 0.9


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral_sliding", "gpt2"])
def test_trees_are_verified_bit_for_bit(family: str, other_draft: Path, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, torch.bfloat16)
    plain = reference(path)
    with ls.load(
        path, budget="min", workload=WORKLOAD, draft=path, draft_tokens=12, draft_width=3
    ) as streamed:
        for settings in ({}, SAMPLING, prompt(30)):
            assert_equal(plain, streamed, **settings)
        speculation = streamed.report().speculation
    assert speculation is not None
    assert speculation.verified > sum(speculation.drafted)  # there were branches
    assert speculation.tokens_per_sweep > 1.5


@contextmanager
def drafting_before(go_on: GoOn, size: int, rank: RankTokens) -> Iterator[None]:
    """Stand in for `drafting_on`: always drafts as much as it may, before the sweep."""
    go_on(size, rank, lambda: False)
    yield


@pytest.mark.parametrize("exact_ties", [True, False])
def test_what_is_drafted_during_a_sweep_is_verified_by_the_next(
    exact_ties: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstream.speculation.decode.drafting_on", drafting_before)
    monkeypatch.setattr("layerstream.speculation.ahead.WaitShare.is_large", True)
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    with ls.load(
        path, budget="min", workload=WORKLOAD, draft=path, draft_tokens=4, exact_ties=exact_ties
    ) as streamed:
        for settings in ({}, SAMPLING):
            assert_equal(plain, streamed, **settings)
        speculation = streamed.report().speculation
    assert speculation is not None
    assert speculation.ahead > speculation.verified / 2
    assert f"{speculation.ahead} tokens were drafted during sweeps" in speculation.explain()


def test_a_draft_goes_on_while_a_device_waits_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstream.speculation.ahead.WaitShare.is_large", True)
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    with ls.load(
        path,
        budget="min",
        workload=WORKLOAD,
        draft=path,
        draft_tokens=4,
        runtime=FakeAsyncRuntime(lag_s=0.02),
    ) as streamed:
        for settings in ({}, SAMPLING):
            assert_equal(plain, streamed, **settings)
            assert not [one for one in threading.enumerate() if one.name == "layerstream-draft"]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "mixtral"])
def test_a_copy_with_fewer_bits_changes_nothing(kind: str, family: str, tmp_path: Path) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    path = save_tiny(family, tmp_path, torch.float16)
    plain = reference(path)
    with ls.load(path, budget="min", workload=WORKLOAD, draft=kind, draft_tokens=4) as streamed:
        for settings in ({}, SAMPLING):
            assert_equal(plain, streamed, **settings)
        speculation = streamed.report().speculation
        lines = {line.kind.value: line.num_bytes for line in streamed.plan.ledger.lines}
    assert speculation is not None
    assert speculation.tokens_per_sweep > 1.1
    assert lines["draft"] > 0


@pytest.mark.parametrize("draft", ["int8", "lookup", "own"])
def test_an_asynchronous_device_verifies_trees(draft: str, tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float16)
    plain = reference(path)
    chosen = path if draft == "own" else draft
    with ls.load(
        path, budget="min", workload=WORKLOAD, draft=chosen, draft_tokens=8, runtime=FakeAsyncRuntime()
    ) as streamed:
        assert_equal(plain, streamed)
        speculation = streamed.report().speculation
    assert speculation is not None
    assert draft == "lookup" or speculation.verified > sum(speculation.drafted)


def test_a_smaller_model_drafts_after_a_refused_pinning_too(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float16)
    plain, budget = reference(path), ls.MemoryBudget(device="min", host="1 GiB")
    runtime = FakeAsyncRuntime(pin_limit_bytes=300_000)
    with pytest.warns(UserWarning, match="only the staging buffers are pinned"):
        streamed = ls.load(path, budget=budget, workload=WORKLOAD, draft=path, runtime=runtime)
    with streamed:
        assert_equal(plain, streamed)


def test_auto_uses_no_draft_where_nothing_is_read_and_says_why(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    with ls.load(path, budget="auto", workload=WORKLOAD, draft="auto") as streamed:
        assert_equal(plain, streamed)
        assert streamed.plan.draft == ""
        assert "int8 would take" in streamed.plan.draft_refusal
        assert streamed.report().speculation is None


def test_requests_of_a_batch_speculate_in_the_same_sweeps(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    plain = reference(path)
    requests = [
        ls.GenerationRequest(prompt=tuple(prompt(length)["input_ids"][0].tolist()), max_new_tokens=new)
        for length, new in ((9, 20), (4, 24), (7, 12))
    ]
    workload = ls.Workload(prompt_tokens=16, new_tokens=NEW_TOKENS, batch_size=3)
    with ls.load(path, budget="min", workload=workload, draft=path, draft_tokens=6) as streamed:
        results = ls.generate_many(streamed, requests)
        report = streamed.report()
    for request, result in zip(requests, results, strict=True):
        assert list(result.tokens) == alone(plain, request)
    assert report.speculation is not None
    assert report.sweeps < 12  # the prompts' and, for 24 tokens, few more
    assert report.speculation.tokens == sum(request.max_new_tokens - 1 for request in requests)


def test_requests_that_share_sweeps_each_sample_with_their_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstream.speculation.ahead.WaitShare.is_large", True)
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    ids = tuple(prompt()["input_ids"][0].tolist())
    requests = [
        ls.GenerationRequest(prompt=ids, max_new_tokens=16, do_sample=True, temperature=2.0, seed=seed)
        for seed in range(1, 5)
    ]
    workload = ls.Workload(prompt_tokens=16, new_tokens=16, batch_size=4)
    with ls.load(
        path,
        budget="min",
        workload=workload,
        draft=path,
        draft_tokens=4,
        runtime=FakeAsyncRuntime(lag_s=0.005),
    ) as streamed:
        results = ls.generate_many(streamed, requests, packed=False)
    for request, result in zip(requests, results, strict=True):
        assert list(result.tokens) == alone(plain, request)


def test_each_sweep_is_heard(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    heard: list[VerifiedTokens] = []
    with ls.load(path, budget="min", workload=WORKLOAD, draft=path, draft_tokens=4) as streamed:
        streamed.on_verified = heard.append
        tokens(streamed)
        speculation = streamed.report().speculation
    assert speculation is not None
    assert len(heard) == speculation.sweeps
    assert sum(each.tokens for each in heard) == NEW_TOKENS - 1
    assert sum(each.drafted for each in heard) == speculation.verified


@pytest.mark.parametrize("family", ["qwen3_next", "mamba2"])
def test_a_state_that_forgets_no_tokens_is_decoded_without_a_draft(family: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, torch.float32)
    plain = reference(path)
    with ls.load(path, budget="min", workload=WORKLOAD, draft="lookup") as streamed:
        assert_equal(plain, streamed)
        assert streamed.report().speculation is None
        assert "keeps a recurrent state" in streamed.plan.explain()


@pytest.mark.parametrize("exact_ties", [True, False])
@pytest.mark.parametrize("draft", ["lookup", "other"])
def test_a_draft_that_is_mostly_wrong_changes_nothing(
    draft: str, exact_ties: bool, other_draft: Path, tmp_path: Path
) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    chosen = str(other_draft) if draft == "other" else draft
    with ls.load(path, budget="min", workload=WORKLOAD, draft=chosen, exact_ties=exact_ties) as streamed:
        for settings in ({}, prompt(4, repeats=4), SAMPLING):
            assert_equal(plain, streamed, **settings)


def test_processors_stop_criteria_and_streamers_work_as_in_generate(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    expected, _ = tokens(plain)
    with ls.load(path, budget="min", workload=WORKLOAD, draft=path) as streamed:
        assert_equal(plain, streamed, repetition_penalty=1.3, no_repeat_ngram_size=2)
        assert_equal(plain, streamed, eos_token_id=expected[-5])
        assert_equal(plain, streamed, min_new_tokens=12, eos_token_id=expected[12])
        assert_equal(plain, streamed, max_new_tokens=1)
        streamer = Recorder()
        found, _ = tokens(streamed, streamer=streamer)
    assert found == expected
    *heard, end = streamer.heard
    assert [token for each in heard for token in each] == expected
    assert end == "end"


def test_beams_several_rows_and_transformers_own_speculation_run_as_without_a_draft(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    rows = {name: value.repeat(2, 1) for name, value in prompt().items()}
    with ls.load(path, budget="auto", workload=WORKLOAD, draft=path) as streamed:
        with streamed.beyond_plan():
            assert_equal(plain, streamed, num_beams=3)
        assert_equal(plain, streamed, prompt_lookup_num_tokens=3)
        with streamed.beyond_plan():
            assert torch.equal(
                plain.generate(**rows, max_new_tokens=8, do_sample=False),
                streamed.generate(**rows, max_new_tokens=8, do_sample=False),
            )
        detailed = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 4}
        expected, found = (
            model.generate(**prompt(), **detailed, do_sample=False) for model in (plain, streamed)
        )
        assert torch.equal(expected.sequences, found.sequences) and len(found.scores) == 4
        speculation = streamed.report().speculation
    assert speculation is not None and speculation.sweeps == 0


def test_the_ledger_counts_the_draft_and_the_report_starts_anew(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    workload = ls.Workload(prompt_tokens=MOST_DRAFTED + 1, new_tokens=NEW_TOKENS + MOST_DRAFTED)
    without = ls.plan(path, budget="min", workload=workload)
    with_it = ls.plan(path, budget="min", workload=WORKLOAD, draft=path)
    lines = {line.kind.value: line.num_bytes for line in with_it.ledger.lines}
    assert lines["draft"] == with_it.ledger.device_bytes - without.ledger.device_bytes
    assert lines["draft"] > sum(file.stat().st_size for file in path.glob("*.safetensors")) * 0.9
    assert with_it.draft == str(path) and "draft " in with_it.explain()
    with ls.load(path, budget="min", workload=WORKLOAD, draft=path) as streamed:
        assert streamed.plan.ledger == with_it.ledger
        tokens(streamed)
        assert "tokens per sweep" in streamed.report().explain()
        streamed.reset_report()
        speculation = streamed.report().speculation
        assert speculation is not None and speculation.tokens == 0


def test_a_draft_with_other_tokens_is_refused(tmp_path: Path, tiny_llama_dir: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.float32)
    with pytest.raises(ls.PlanError, match=r"cannot draft for .* their tokenizers differ"):
        ls.load(tiny_llama_dir, budget="min", draft=path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"draft": ""}, "draft is empty"),
        ({"draft": "lookup", "devices": ["cpu", "cpu"]}, "one device"),
        ({"draft": "lookup", "draft_tokens": 0}, "draft_tokens must be at least 1"),
        ({"draft": "int8", "draft_width": 2, "exact_ties": False}, "leave one of them out"),
    ],
)
def test_a_draft_that_cannot_be_is_refused(
    options: dict[str, Any], reason: str, tiny_llama_dir: Path
) -> None:
    with pytest.raises(ls.PlanError, match=reason):
        ls.load(tiny_llama_dir, budget="min", **options)
