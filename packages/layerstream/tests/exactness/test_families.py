"""Streamed equals plain, bit for bit: every family, dtype, budget and kind of computation.

The plain model computes once per family and dtype. `UNSUPPORTED` lists what it does not support itself, so
that neither a computation nor a family can silently drop out of the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kit.budgets import BUDGETS, WORKLOAD, load, total_bytes
from kit.compare import (
    COMPUTATIONS,
    ReferenceResults,
    assert_equals_reference,
    compute_reference,
    generate,
    greedy,
    left_padded_batch,
    reference,
)
from kit.families import FAMILIES, save_tiny

import layerstream as ls
from layerstream.spec.plans import Residency

DTYPES = ("float32", "bfloat16", "float16")
UNSUPPORTED = {
    **{f"falcon_alibi-{dtype}": {"static_cache"} for dtype in DTYPES},
    "minimax-float16": {
        "sampled"
    },  # its lightning attention overflows in fp16 after padding: NaN cannot be sampled from
}
"""Computations that transformers itself fails at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A checkpoint and what the plain model computes from it."""

    family: str
    path: Path
    dtype: str
    results: ReferenceResults


def _grouped(family: str, dtype: str) -> object:
    name = f"{family}-{dtype}"
    return pytest.param((family, dtype), id=name, marks=pytest.mark.xdist_group(name))


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return the checkpoint of a family, saved in the dtype, with the plain model's results."""
    family, dtype = request.param
    path = save_tiny(family, tmp_path_factory.mktemp(family), getattr(torch, dtype))
    results = compute_reference(reference(path, getattr(torch, dtype)))
    return Case(family=family, path=path, dtype=dtype, results=results)


@pytest.mark.parametrize(
    "case", [_grouped(family, dtype) for family in FAMILIES for dtype in DTYPES], indirect=True
)
class TestEveryFamily:
    """One checkpoint per family and dtype, at every budget."""

    def test_the_plain_model_supports_what_the_table_says(self, case: Case) -> None:
        """Otherwise, a computation that breaks for the plain model would drop out of the comparison."""
        assert set(case.results.unsupported) == UNSUPPORTED.get(f"{case.family}-{case.dtype}", set()), (
            case.results.unsupported
        )

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_streamed_equals_plain_in_every_bit(self, case: Case, budget: str) -> None:
        """Logits, hidden states, greedy, sampled, beam and static cache."""
        with load(case.path, case.dtype, budget) as streamed:
            assert_equals_reference(
                streamed.model, case.results, COMPUTATIONS, f"{case.family} {case.dtype} at {budget}"
            )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3"])
def test_every_budget_between_least_and_resident_is_exact(family: str, tmp_path: Path) -> None:
    """Nine budgets, to cover the residency patterns and granularities in between."""
    path = save_tiny(family, tmp_path)
    results = compute_reference(reference(path), ("logits", "greedy"))
    least, most = total_bytes(path, "float32", "min"), total_bytes(path, "float32", "4 GiB")
    patterns = set()
    for step in range(9):
        budget = least + (most - least) * step // 8
        with ls.load(str(path), dtype="float32", device="cpu", budget=budget, workload=WORKLOAD) as streamed:
            assert streamed.plan.ledger.device_bytes <= budget
            patterns.add(streamed.plan.count(Residency.DEVICE))
            assert_equals_reference(
                streamed.model, results, ("logits", "greedy"), f"{family} at {budget} bytes"
            )
    assert len(patterns) > 2, f"nine budgets gave only {patterns} resident units: the test proves nothing"


@pytest.mark.parametrize(
    "dtypes",
    [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
    ids="-as-".join,
)
@pytest.mark.parametrize("family", ["llama_tied", "qwen3_moe", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_checkpoint_runs_exactly_in_a_dtype_other_than_its_own(
    family: str, dtypes: tuple[str, str], budget: str, tmp_path: Path
) -> None:
    """The cast happens where `from_pretrained` does it: before tensors are put together."""
    saved, run = dtypes
    path = save_tiny(family, tmp_path, getattr(torch, saved))
    results = compute_reference(reference(path, getattr(torch, run)), ("logits", "greedy"))
    with load(path, run, budget) as streamed:
        assert_equals_reference(
            streamed.model, results, ("logits", "greedy"), f"{family} {saved} run as {run} at {budget}"
        )


@pytest.mark.parametrize("saved", DTYPES)
def test_dtype_auto_keeps_the_dtype_of_the_checkpoint(saved: str, tmp_path: Path) -> None:
    """`auto` means what it means to transformers."""
    path = save_tiny("llama", tmp_path, getattr(torch, saved))
    plain = reference(path, "auto")
    assert plain.dtype == getattr(torch, saved)
    with load(path, "auto", "min") as streamed:
        assert streamed.model.dtype == plain.dtype
        assert streamed.plan.dtype == saved
        assert_equals_reference(
            streamed.model, compute_reference(plain, ("logits", "greedy")), ("logits", "greedy"), saved
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_either_attention_implementation_is_exact(attention: str, dtype: str, tmp_path: Path) -> None:
    """Set on the model itself, which transformers allows at any time."""
    path = save_tiny("llama", tmp_path, getattr(torch, dtype))
    plain = reference(path, getattr(torch, dtype))
    plain.set_attn_implementation(attention)
    results = compute_reference(plain, ("logits", "greedy"))
    with load(path, dtype, "min") as streamed:
        streamed.model.set_attn_implementation(attention)
        assert_equals_reference(streamed.model, results, ("logits", "greedy"), f"{attention} {dtype}")


@pytest.mark.parametrize("budget", BUDGETS)
def test_streamed_generate_equals_generate_of_its_model(budget: str, tmp_path: Path) -> None:
    """`streamed.generate` takes transformers' own arguments and returns the requested outputs."""
    path = save_tiny("llama", tmp_path)
    expected = greedy(reference(path))
    with load(path, "float32", budget) as streamed:
        settings = {"min_new_tokens": 5, "max_new_tokens": 5, "pad_token_id": 0, "do_sample": False}
        from_model = generate(streamed.model, **settings)
        inputs = {"return_dict_in_generate": True, "output_scores": True, **settings}
        output = streamed.generate(**left_padded_batch(streamed.model), **inputs)
    assert torch.equal(output.sequences, expected["sequences"])
    assert torch.equal(from_model["sequences"], expected["sequences"])
    assert len(output.scores) == 5
