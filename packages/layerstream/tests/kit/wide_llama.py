"""A Llama wide enough to make rounding and masks negligible, streamed in units of a chosen size.

Test kit, for tests that compare a ledger with what is really allocated.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import layerstream as ls
from layerstream.engine.build import build
from layerstream.engine.inspect import inspect_model
from layerstream.machine import describe_machine
from layerstream.planning.placement import plan_placement
from layerstream.streaming.runtime import TorchRuntime


def save_wide_llama(directory: Path) -> Path:
    """Write the checkpoint to `directory`, and return that."""
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=512,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def stream_in(
    path: Path, granularity: ls.Granularity, workload: ls.Workload, attention: str | None = None
) -> ls.StreamedModel:
    """Load `path` on the CPU in the least memory, in whole blocks or in the smallest units."""
    spec = inspect_model(path, ls.LoadOptions(attn_implementation=attention))
    if granularity is ls.Granularity.BLOCK:
        spec = replace(spec, profile=replace(spec.profile, parts=(), layers=()))
    cpu = torch.device("cpu")
    plan = plan_placement(
        profile=spec.profile,
        budget=ls.MemoryBudget(device="min"),
        workload=workload,
        machine=describe_machine(cpu),
    )
    assert plan.granularity is granularity
    return ls.StreamedModel(build(spec, plan, [TorchRuntime(cpu)]), baseline_bytes=0)
