"""A batch's ledger covers what running micro-batches take: every storage that they allocate is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.storages import Alive, Watch
from transformers import LlamaConfig, LlamaForCausalLM

import layerstream as ls
from layerstream.engine.build import build
from layerstream.engine.inspect import inspect_model
from layerstream.machine import describe_machine
from layerstream.planning.placement import plan_placement
from layerstream.streaming.runtime import TorchRuntime

ROWS, PROMPT_TOKENS, NEW_TOKENS = 8, 96, 4
WORKLOAD = ls.Workload(batch_size=ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama wide enough that rounding and masks do not matter."""
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
    return directory


def streamed_in(path: Path, granularity: ls.Granularity) -> ls.StreamedModel:
    spec = inspect_model(path)
    if granularity is ls.Granularity.BLOCK:
        spec = replace(spec, profile=replace(spec.profile, parts=(), layers=()))
    machine = describe_machine(torch.device("cpu"))
    plan = plan_placement(
        profile=spec.profile, budget=ls.MemoryBudget(device="min"), workload=WORKLOAD, machine=machine
    )
    assert plan.granularity is granularity
    return ls.StreamedModel(build(spec, plan, [TorchRuntime(torch.device("cpu"))]), baseline_bytes=0)


@pytest.mark.parametrize("packed", [False, True], ids=["not packed", "packed"])
@pytest.mark.parametrize(
    "granularity", [ls.Granularity.BLOCK, ls.Granularity.LAYER], ids=lambda granularity: granularity.value
)
def test_running_tasks_take_at_most_their_ledger_and_not_much_less(
    path: Path, granularity: ls.Granularity, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        ls.GenerationRequest(prompt=[5 + row] * PROMPT_TOKENS, max_new_tokens=NEW_TOKENS)
        for row in range(ROWS)
    ]
    with streamed_in(path, granularity) as streamed:
        alive, plain = Alive(), streamed.model.generate

        def watched(*args: Any, **kwargs: Any) -> Any:
            with Watch(alive):
                return plain(*args, **kwargs)

        monkeypatch.setitem(streamed.model.__dict__, "generate", watched)
        plan = ls.plan_requests(streamed, requests, packed=packed)
        results = ls.generate_many(streamed, requests, packed=packed)
    assert all(result.error is None for result in results)
    promised = sum(line.num_bytes for line in plan.lines)
    assert promised <= plan.room_bytes
    assert 0.4 * promised < alive.peak_bytes <= promised
