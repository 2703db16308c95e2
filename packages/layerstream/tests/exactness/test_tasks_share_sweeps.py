"""Calls that share every sweep give the plain model's results bit for bit; only the longest costs reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.budgets import BUDGETS, load
from kit.compare import cache_argument, reference
from kit.families import save_tiny, save_tiny_config
from kit.shrink import shrunken_config
from kit.tasks import LONGEST, Call, generation, many_kinds, settled_reads, together
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

import layerstream as ls
from layerstream.streaming.scheduler import Task
from layerstream.testing import FakeAsyncRuntime

FAMILIES = (
    "llama",
    "llama_tied",
    "gpt2",
    "bloom",
    "falcon_new_decoder",
    "opt_norm_after_and_projected",
    "mistral_sliding",
    "qwen3_moe",
    "gemma3_text",
    "gpt_oss",
    "deepseek_v3",
    "jamba",
    "mamba2",
    "zamba2",
    "llama4_text",
    "minimax",
)
NO_BEAMS = ("mamba2",)
"""Families whose cache transformers cannot reorder for beams."""


def calls_for(family: str, plain: PreTrainedModel) -> tuple[list[Call], list[torch.Tensor]]:
    """Return the calls that the plain model supports, and its result for each."""
    calls, expected = [], []
    for call in many_kinds():
        try:
            expected.append(call(plain))
            calls.append(call)
        except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError):
            assert family in NO_BEAMS
    return calls, expected


def assert_all_equal(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    assert len(expected) == len(actual)
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        assert torch.equal(one, other), f"call {number}: {one.tolist()} alone, {other.tolist()} together"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_together_equals_alone(family: str, dtype: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path, getattr(torch, dtype))
    calls, expected = calls_for(family, reference(path))
    with load(path, dtype, "min") as streamed:
        assert_all_equal(expected, together(streamed, calls))
        assert streamed.report().sweeps == 9
        # and once more on the same model
        assert_all_equal(expected, together(streamed, calls))


@pytest.mark.parametrize("budget", BUDGETS)
def test_together_equals_alone_at_every_budget(budget: str, tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    calls, expected = calls_for("llama", reference(path))
    with load(path, "auto", budget) as streamed:
        assert_all_equal(expected, together(streamed, calls))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "zamba2"])
def test_the_weights_are_read_for_the_longest_call_alone(family: str, tmp_path: Path) -> None:
    """Counted in reads of units: embedding rows are read for each prompt."""
    path = save_tiny(family, tmp_path, torch.bfloat16)
    counts = []
    for calls in ([many_kinds()[LONGEST]], many_kinds()):
        with load(path, "auto", "min") as streamed:
            together(streamed, calls)
            counts.append((settled_reads(streamed), streamed.report().sweeps))
    with load(path, "auto", "min") as streamed:
        many_kinds()[LONGEST](streamed.model)
        counts.append((settled_reads(streamed), streamed.report().sweeps))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][1] == 9


def test_calls_are_admitted_as_others_finish(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    calls, expected = calls_for("llama", reference(path))
    with load(path, "auto", "min") as streamed:
        tasks = [Task(call=partial(call, streamed.model), weight=1) for call in calls]
        results = streamed.group.run(tasks, capacity=2)
        assert_all_equal(expected, [result.value for result in results])
        assert 9 < streamed.report().sweeps < 5 + 9 + 4 + 2 + 6 + 1


def test_assisted_calls_share_sweeps_with_plain_ones(tmp_path: Path) -> None:
    """Assisted calls need fewer, wider sweeps; calls that need more go on without them."""
    path = save_tiny("llama", tmp_path / "target", torch.float32)
    draft = reference(save_tiny("llama_tied", tmp_path / "draft", torch.float32, seed=7))
    plain = reference(path)
    calls = [
        generation(7, 6, do_sample=False, assistant_model=draft),
        generation(6, 8, do_sample=False, prompt_lookup_num_tokens=3),
        generation(5, 7, do_sample=False),
        generation(4, 5, do_sample=True, seed=2, assistant_model=draft),
        generation(8, 6, do_sample=False, num_beams=3),
    ]
    expected = [call(plain) for call in calls]
    with load(path, "auto", "min") as streamed:
        assert_all_equal(expected, together(streamed, calls))
        assert streamed.report().sweeps <= 8


def test_each_call_has_its_own_static_cache(tmp_path: Path) -> None:
    """generate() remembers the length of the last static cache on the model."""
    path = save_tiny("llama", tmp_path, torch.bfloat16)
    calls = [generation(n, 4, do_sample=False, cache_implementation="static") for n in (12, 3, 7)]
    expected = [call(reference(path)) for call in calls]
    with load(path, "auto", "min") as streamed:
        assert_all_equal(expected, together(streamed, calls))


def test_each_call_has_its_own_module_state(tmp_path: Path) -> None:
    """RecurrentGemma's recurrent layers keep their state in attributes."""
    path = save_tiny_config(shrunken_config("recurrent_gemma"), tmp_path)
    calls = [
        generation(7, 5, do_sample=False),
        generation(4, 9, do_sample=True, seed=3),
        generation(9, 4, do_sample=False),
    ]
    expected = [call(reference(path)) for call in calls]
    with load(path, "float32", "min") as streamed:
        assert_all_equal(expected, together(streamed, calls))
        assert_all_equal(expected, [call(streamed.model) for call in calls])


def test_tasks_keep_every_wait_of_an_asynchronous_device(tiny_llama_dir: Path) -> None:
    calls, expected = calls_for("llama", reference(tiny_llama_dir))
    budget = ls.MemoryBudget(device="min", host="min")
    with ls.load(tiny_llama_dir, budget=budget, runtime=FakeAsyncRuntime(lag_s=0.0005)) as streamed:
        assert_all_equal(expected, together(streamed, calls))


class ReadsPrefix(DynamicLayer):
    """One layer's cache of a suffix: its own keys and values after those that the prefix left in `prefix`."""

    def __init__(self, prefix: DynamicLayer, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix, self.prefix_tokens = prefix, prefix_tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.prefix.get_seq_length() == self.prefix_tokens, "the suffix is ahead of its prefix"
        return torch.cat([self.prefix.keys, key_states], dim=-2), torch.cat(
            [self.prefix.values, value_states], dim=-2
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.prefix_tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.prefix_tokens


@pytest.mark.parametrize("budget", BUDGETS)
def test_suffixes_read_the_cache_of_a_prefix_in_the_same_sweep(budget: str, tmp_path: Path) -> None:
    """The prefix is admitted first and passes each block before any suffix does: one sweep serves all."""
    path = save_tiny("llama", tmp_path, torch.float32)
    plain = reference(path)
    prefix, suffixes = (
        torch.tensor([[11, 12, 13, 14, 15]]),
        [torch.tensor([[20, 21]]), torch.tensor([[30, 31, 32]])],
    )

    def prefix_and_suffixes(model: PreTrainedModel) -> list[Callable[[], torch.Tensor]]:
        cache = DynamicCache(config=model.config)

        def score(suffix: torch.Tensor) -> torch.Tensor:
            own = DynamicCache(config=model.config)
            own.layers = [ReadsPrefix(layer, prefix.shape[1]) for layer in cache.layers]
            with torch.no_grad():
                logits: torch.Tensor = model(input_ids=suffix, **cache_argument(model, own)).logits
            return logits

        def read() -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = model(input_ids=prefix, **cache_argument(model, cache)).logits
            return logits

        return [read, *(partial(score, suffix) for suffix in suffixes)]

    expected = [call() for call in prefix_and_suffixes(plain)]
    with load(path, "auto", budget) as streamed:
        results = streamed.group.run(prefix_and_suffixes(streamed.model))
        assert budget == "resident" or streamed.report().sweeps == 1
    assert [result.error for result in results] == [None] * 3
    assert_all_equal(expected, [result.value for result in results])
