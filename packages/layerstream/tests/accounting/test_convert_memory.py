"""A conversion takes the same little memory whatever the model: both run under a limit that the kernel keeps.

The limit is RLIMIT_DATA, which counts private writable memory: everything a program allocates. It is set
after a first small conversion, to what the process has then plus `ROOM_BYTES`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from kit.gguf_files import Array, as_f32, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

ROOM_BYTES = 96 * 2**20
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL = AutoConfig.for_model("llama", vocab_size=128, **SIZES)
LARGE = AutoConfig.for_model("llama", vocab_size=65_536, **SIZES)
PROGRAM = """
import json, resource, sys
import layerstream as ls
small, large, target, room_bytes = sys.argv[1:]
def kernel_bytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
ls.convert_checkpoint(small, target + "-small")
start_bytes = kernel_bytes("VmData")
limit_bytes = start_bytes + int(room_bytes)
resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
peak_bytes = 0
def watch(progress):
    global peak_bytes
    peak_bytes = max(peak_bytes, kernel_bytes("VmData") - start_bytes)
report = ls.convert_checkpoint(large, target, on_progress=watch)
print(json.dumps({"weight_bytes": report.weight_bytes, "peak_bytes": peak_bytes}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status"),
]


def convert_under_the_limit(small: Path, large: Path, target: Path) -> dict[str, int]:
    command = [sys.executable, "-c", PROGRAM, str(small), str(large), str(target), str(ROOM_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    print(  # noqa: T201
        f"{found['weight_bytes'] / 2**20:.0f} MiB of weights, {found['peak_bytes'] / 2**20:.0f} MiB more "
        f"memory than before, {ROOM_BYTES / 2**20:.0f} MiB allowed"
    )
    return found


def unfilled_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model whose weights are whatever is in memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.to_empty(device="cpu")


def save_pickled(config: PreTrainedConfig, directory: Path) -> Path:
    directory.mkdir()
    config.save_pretrained(directory)
    torch.save(unfilled_model(config).state_dict(), directory / "pytorch_model.bin")
    return directory


def test_a_pickled_file_of_any_size_is_converted_within_the_room(tmp_path: Path) -> None:
    small, large = (save_pickled(config, tmp_path / str(config.vocab_size)) for config in (SMALL, LARGE))
    found = convert_under_the_limit(small, large, tmp_path / "converted")
    assert found["weight_bytes"] > 5 * ROOM_BYTES
    # one tensor alone is larger than what is allowed
    assert 4 * LARGE.vocab_size * LARGE.hidden_size > 2 * ROOM_BYTES


def test_a_quantized_gguf_file_of_any_size_is_converted_within_the_room(tmp_path: Path) -> None:
    def store(name: str, values: Array) -> tuple[Array, gguf.GGMLQuantizationType]:
        if values.ndim == 1:
            return as_f32(name, values)
        # blocks of zeros: quantizing takes minutes
        rows, block_bytes = values.shape[0], values.shape[1] // 32 * 34
        return np.zeros((rows, block_bytes), np.uint8), gguf.GGMLQuantizationType.Q8_0

    small, large = (
        write_gguf(unfilled_model(config), tmp_path / f"{config.vocab_size}.gguf", "llama", store)
        for config in (SMALL, LARGE)
    )
    found = convert_under_the_limit(small, large, tmp_path / "converted")
    assert found["weight_bytes"] > 2.5 * ROOM_BYTES
