"""Scores equal transformers' two steps, bit for bit: the prefix, then each suffix on a copy of its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.budgets import BUDGETS, load
from kit.compare import reference
from kit.families import save_tiny
from kit.tasks import settled_reads
from kit.two_steps import head_in_two_steps, head_whole, logprobs_in_two_steps, logprobs_whole, requests
from safetensors.torch import save_file
from torch import nn

import layerstream as ls
from layerstream.testing import FakeAsyncRuntime

SHARED = (
    "llama",
    "llama_tied",
    "llama3_rope",
    "gpt2",
    "bloom",
    "falcon_old_decoder",
    "falcon_new_decoder",
    "falcon_alibi",
    "mpt",
    "gpt_bigcode",
    "opt",
    "opt_norm_after_and_projected",
    "gpt_neox",
    "mistral_sliding",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "starcoder2",
    "cohere",
    "stablelm",
    "gptj",
    "gpt_neo",
    "codegen",
    "biogpt",
    "ctrl",
    "llama4_text",
    "glm4_moe",
    "gemma3n_text",
    "gemma4_text",
)
IN_FP32 = (
    "llama",
    "gpt2",
    "bloom",
    "falcon_alibi",
    "mistral_sliding",
    "gemma3_text",
    "gpt_bigcode",
    "deepseek_v3",
    "llama4_text",
)
WHOLE = ("jamba", "qwen3_next", "mamba2", "zamba2", "minimax")
"""Families with a state that each continuation changes."""


def head_for(width: int, dtype: torch.dtype) -> nn.Linear:
    """Return a random head of 8 outputs."""
    torch.manual_seed(11)
    return nn.Linear(width, 8).to(dtype).requires_grad_(False)


def assert_logprobs(
    results: Sequence[ls.ScoringResult], expected: list[list[tuple[torch.Tensor, bool]]]
) -> None:
    for result, expected_scores in zip(results, expected, strict=True):
        assert result.error is None, result.error
        for score, (values, is_greedy) in zip(result.scores, expected_scores, strict=True):
            assert score.token_logprobs.dtype == np.float32
            np.testing.assert_array_equal(score.token_logprobs, values.numpy())
            assert score.is_greedy == is_greedy
            assert score.sum == float(values.double().sum())
            assert score.mean == score.sum / len(values)


def assert_outputs(results: Sequence[ls.ScoringResult], expected: list[list[torch.Tensor]]) -> None:
    for result, expected_scores in zip(results, expected, strict=True):
        assert result.error is None, result.error
        for score, values in zip(result.scores, expected_scores, strict=True):
            np.testing.assert_array_equal(score.outputs, values.float().numpy())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, "bfloat16") for family in SHARED] + [(family, "float32") for family in IN_FP32],
)
def test_scores_equal_two_steps(family: str, dtype: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, getattr(torch, dtype))
    plain = reference(path)
    head = head_for(plain.get_output_embeddings().weight.shape[-1], plain.dtype)
    scored = requests()
    with load(path, dtype, "min") as streamed:
        results = ls.score(streamed, scored, max_rows=64)
        assert streamed.report().sweeps == 1
        assert all(result.is_shared for result in results)
        assert_logprobs(results, [logprobs_in_two_steps(plain, request) for request in scored])
        streamed.reset_report()
        assert_outputs(
            ls.score(streamed, scored, head=head, max_rows=64),
            [head_in_two_steps(plain, head, request) for request in scored],
        )
        assert streamed.report().sweeps == 1


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_scores_equal_two_steps_at_every_budget(family: str, budget: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, torch.bfloat16)
    plain = reference(path)
    with load(path, "auto", budget) as streamed:
        assert_logprobs(
            ls.score(streamed, requests()), [logprobs_in_two_steps(plain, request) for request in requests()]
        )


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, "bfloat16") for family in WHOLE), ("jamba", "float32")]
)
def test_families_with_a_state_score_each_suffix_with_its_prefix(
    family: str, dtype: str, tmp_path: Path
) -> None:
    path = save_tiny(family, tmp_path, getattr(torch, dtype))
    plain = reference(path)
    head = head_for(plain.get_output_embeddings().weight.shape[-1], plain.dtype)
    scored = requests()
    with load(path, dtype, "min") as streamed:
        results = ls.score(streamed, scored, max_rows=64)
        assert streamed.report().sweeps == 1
        assert not any(result.is_shared for result in results)
        assert_logprobs(results, [logprobs_whole(plain, request) for request in scored])
        assert_outputs(
            ls.score(streamed, scored, head=head, max_rows=64),
            [head_whole(plain, head, request) for request in scored],
        )


@pytest.mark.parametrize("family", IN_FP32)
def test_two_steps_agree_with_one_text(family: str, tmp_path: Path) -> None:
    """Positions and masks after the prefix are right: in fp32 the two ways agree up to rounding."""
    plain = reference(save_tiny(family, tmp_path, torch.float32))
    for request in requests():
        for (steps, _), (whole, _) in zip(
            logprobs_in_two_steps(plain, request), logprobs_whole(plain, request), strict=True
        ):
            torch.testing.assert_close(steps, whole, rtol=1e-3, atol=1e-3)


def test_all_requests_together_read_the_weights_once(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    with load(path, "auto", "min") as streamed:
        streamed.model(input_ids=torch.tensor([[5, 6, 7]]))
        once = settled_reads(streamed)
    with load(path, "auto", "min") as streamed:
        ls.score(streamed, requests() * 20, max_rows=64)
        assert settled_reads(streamed) == once


def test_max_rows_limits_the_requests_per_sweep(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    plain = reference(path)
    scored = requests() * 2
    with load(path, "auto", "min") as streamed:
        results = ls.score(streamed, scored, max_rows=2)
        assert streamed.report().sweeps == 3
        assert_logprobs(results, [logprobs_in_two_steps(plain, request) for request in scored])


def test_a_head_from_a_file_scores_like_the_module(tmp_path: Path) -> None:
    """The head is in fp32 and the model in bf16: the hidden state is cast to the head's dtype."""
    path = save_tiny("llama", tmp_path / "model", torch.bfloat16)
    head = head_for(64, torch.float32)
    save_file({"score.weight": head.weight.data, "score.bias": head.bias.data}, tmp_path / "head.safetensors")
    plain = reference(path)
    expected = [head_in_two_steps(plain, head, request) for request in requests()]
    with load(path, "auto", "min") as streamed:
        results = ls.score(streamed, requests(), head=tmp_path / "head.safetensors")
    assert_outputs(results, expected)
    score = results[0].scores[0]
    assert score.outputs.shape == (8,)
    assert score.mean == float(score.outputs.astype(np.float64).sum()) / 8


def test_scores_respect_every_wait_of_an_asynchronous_device(tiny_llama_dir: Path) -> None:
    plain = reference(tiny_llama_dir)
    budget = ls.MemoryBudget(device="min", host="min")
    with ls.load(tiny_llama_dir, budget=budget, runtime=FakeAsyncRuntime(lag_s=0.0005)) as streamed:
        results = ls.score(streamed, requests())
    assert_logprobs(results, [logprobs_in_two_steps(plain, request) for request in requests()])


@pytest.mark.parametrize("runtime", [None, FakeAsyncRuntime(lag_s=0.0)], ids=["cpu", "accelerator"])
def test_on_an_accelerator_the_final_norm_sees_as_many_rows_as_in_the_plain_model(
    tiny_llama_dir: Path, runtime: FakeAsyncRuntime | None
) -> None:
    """There, how many rows there are decides how each is summed; on the CPU only the needed ones run."""
    request = ([5, 6, 7, 8], [[9, 10, 11], [12]])
    seen: list[int] = []
    with ls.load(tiny_llama_dir, budget="min", runtime=runtime) as streamed:
        streamed.model.model.norm.register_forward_hook(lambda *call: seen.append(call[2].shape[-2]))
        ls.score(streamed, [request])
    assert sorted(seen) == ([1, 2] if runtime is None else [2, 4])
