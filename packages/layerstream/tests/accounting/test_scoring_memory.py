"""The ledger of a scoring sweep covers the memory of its requests; every storage they make is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.storages import Alive, Watch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import layerstream as ls
from layerstream.engine.build import build
from layerstream.engine.inspect import inspect_model
from layerstream.machine import describe_machine
from layerstream.planning.placement import plan_placement
from layerstream.planning.scoring_sweeps import TASK_BYTES
from layerstream.streaming.runtime import TorchRuntime

NUM_REQUESTS, PREFIX_TOKENS, SUFFIX_TOKENS = 6, 192, (12, 7, 1, 20)
NUM_TASKS = NUM_REQUESTS * (1 + sum(tokens > 1 for tokens in SUFFIX_TOKENS))
WORKLOAD = ls.Workload(
    batch_size=2 * NUM_REQUESTS, prompt_tokens=PREFIX_TOKENS + max(SUFFIX_TOKENS), new_tokens=0
)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A Llama wide enough to make rounding and masks negligible, and the attention to run it with."""
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=512,
        eos_token_id=None,
    )
    directory = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory, request.param


def streamed_in(path: tuple[Path, str], granularity: ls.Granularity) -> ls.StreamedModel:
    spec = inspect_model(path[0], ls.LoadOptions(attn_implementation=path[1]))
    if granularity is ls.Granularity.BLOCK:
        spec = replace(spec, profile=replace(spec.profile, parts=(), layers=()))
    machine = describe_machine(torch.device("cpu"))
    plan = plan_placement(
        profile=spec.profile, budget=ls.MemoryBudget(device="min"), workload=WORKLOAD, machine=machine
    )
    assert plan.granularity is granularity
    return ls.StreamedModel(build(spec, plan, [TorchRuntime(torch.device("cpu"))]), baseline_bytes=0)


def watch(part: nn.Module, alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., Any] = part.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with Watch(alive):
            return plain(*args, **kwargs)

    monkeypatch.setitem(part.__dict__, "forward", watched)


@pytest.mark.parametrize(
    "granularity", [ls.Granularity.BLOCK, ls.Granularity.LAYER], ids=lambda granularity: granularity.value
)
def test_a_sweep_takes_no_more_than_its_ledger_and_not_much_less(
    path: tuple[Path, str], granularity: ls.Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        ([5 + row] * PREFIX_TOKENS, [[6 + row] * tokens for tokens in SUFFIX_TOKENS])
        for row in range(NUM_REQUESTS)
    ]
    with streamed_in(path, granularity) as streamed:
        alive = Alive()
        watch(streamed.model, alive, monkeypatch)
        plan = ls.plan_scores(streamed, requests, max_rows=NUM_REQUESTS)
        results = ls.score(streamed, requests, max_rows=NUM_REQUESTS)
    assert all(result.error is None for result in results)
    # the stacks of threads are not storages
    predicted = plan.sweep_bytes - NUM_TASKS * TASK_BYTES
    assert 0.35 * predicted < alive.peak_bytes <= predicted, (
        f"{alive.peak_bytes / predicted:.2f} of {predicted:,}"
    )
