"""On a CPU device, a process that runs its first model grows by no more than the plan says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

RUN = """
import sys, torch
import layerstream as ls
path, prompt_tokens, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3]
workload = ls.Workload(prompt_tokens=prompt_tokens, new_tokens=4)
with ls.load(path, device="cpu", dtype=dtype, budget="min", workload=workload) as streamed:
    ids = torch.arange(1, prompt_tokens + 1)[None]
    streamed.generate(input_ids=ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    print(streamed.report().peak_host_bytes, streamed.plan.ledger.device_bytes)
"""


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A Llama of 12 blocks whose linear layers have five shapes, and its dtype."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=4000,
        eos_token_id=None,
    )
    directory = tmp_path_factory.mktemp("cpu")
    LlamaForCausalLM(config).to(getattr(torch, request.param)).save_pretrained(directory)
    return directory, request.param


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is the kernel's own figure")
@pytest.mark.parametrize("prompt_tokens", [1, 100])
def test_the_first_model_of_a_process_takes_no_more_than_its_ledger(
    stored: tuple[Path, str], prompt_tokens: int
) -> None:
    path, dtype = stored
    command = [sys.executable, "-c", RUN, str(path), str(prompt_tokens), dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    peak_bytes, ledger_bytes = map(int, done.stdout.splitlines()[-1].split())
    # a process that had taken nothing would pass any limit
    assert ledger_bytes / 3 < peak_bytes <= ledger_bytes
