"""Plan for hardware you don't own: a 70B model on a 16 GB card. Nothing is downloaded and nothing is run."""

from __future__ import annotations

import sys

from transformers import LlamaConfig, PreTrainedConfig

import layerstream as ls

SHAPE = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}


def main(model: str | PreTrainedConfig) -> None:
    card = ls.Machine(
        name="a 16 GB card, 32 GB of RAM, an NVMe disk",
        device="cuda:0",
        device_memory_bytes=16 * 10**9,
        host_memory_bytes=32 * 10**9,
        disk_bytes_per_s=2.5e9,
        copy_bytes_per_s=12e9,
        memory_bytes_per_s=300e9,
        flops_per_s=65e12,
        runtime_bytes=512 * 1024**2,
        measured=False,
    )
    workload = ls.Workload(prompt_tokens=4096, new_tokens=128)
    print(ls.simulate(model, machine=card, dtype="float16", workload=workload).explain())


if __name__ == "__main__":
    llama_70b = LlamaConfig(**SHAPE, num_key_value_heads=8, name_or_path="a 70B Llama")
    main(sys.argv[1] if len(sys.argv) > 1 else llama_70b)
