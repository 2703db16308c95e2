"""Chunked prefill still visits every block once and gives the same result with less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import layerstream as ls
from layerstream.engine.inspect import inspect_config

NUM_TOKENS = 60


@pytest.mark.parametrize("budget", ["min", "auto"])
def test_a_chunked_prompt_takes_one_sweep_and_gives_the_result_of_the_whole_prompt(
    tiny_llama_dir: Path, budget: str
) -> None:
    ids = torch.arange(NUM_TOKENS).reshape(1, -1) % 120 + 3
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()
    workload = ls.Workload(prompt_tokens=NUM_TOKENS, new_tokens=8, prefill_chunk_tokens=7)
    widths: list[int] = []
    with (
        torch.no_grad(),
        ls.load(tiny_llama_dir, dtype="float32", budget=budget, workload=workload) as streamed,
    ):
        streamed.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
            lambda _, args: widths.append(args[0].shape[1])
        )
        logits = streamed.model(ids).logits
        assert widths == [7] * 8 + [4]
        assert streamed.report().sweeps == 1
        torch.testing.assert_close(logits, reference(ids).logits, rtol=1e-5, atol=1e-5)
        tokens = streamed.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, reference.generate(ids, max_new_tokens=8, do_sample=False))


def test_the_weights_are_read_once_for_all_chunks(tiny_llama_dir: Path) -> None:
    ids = torch.arange(NUM_TOKENS).reshape(1, -1) % 120 + 3
    read_once = []
    for chunk in (None, 7):
        workload = ls.Workload(prompt_tokens=NUM_TOKENS, prefill_chunk_tokens=chunk)
        with ls.load(tiny_llama_dir, budget="min", workload=workload) as streamed:
            streamed.model(ids)
            visits = [span.unit for span in streamed.timeline.spans() if span.activity is ls.Activity.WAIT]
            read_once.append(sorted(set(visits)) == sorted(visits))
    assert read_once == [True, True]


def test_chunked_prefill_shrinks_the_activations_in_the_profile() -> None:
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=2048, vocab_size=512
    )
    chunks = ls.Workload(prefill_chunk_tokens=32)
    plain = inspect_config(config, ls.LoadOptions(dtype="float16")).profile.activation
    chunked = inspect_config(config, ls.LoadOptions(dtype="float16", workload=chunks)).profile.activation
    assert chunked.bytes_per_token < 0.5 * plain.bytes_per_token
