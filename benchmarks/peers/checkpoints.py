"""The checkpoints that every peer runs: dense Llamas, and a Qwen3-MoE; random weights, with a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from random_llama import LlamaShape, write_llama
from tokenizers import Tokenizer, models


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeShape(LlamaShape):
    """The shape of a Qwen3-MoE: every block has experts, and its attention has norms on queries and keys."""

    num_experts: int
    experts_per_token: int

    def tensors_of_block(self, block: int) -> dict[str, tuple[int, ...]]:
        """Return the stored names and shapes of one block; the intermediate size is that of one expert."""
        # a dataclass with slots is made anew, so that super() without arguments does not know it
        dense = LlamaShape.tensors_of_block(self, block)
        prefix = f"model.layers.{block}."
        head_size = self.hidden_size // self.num_heads
        attention = {name: size for name, size in dense.items() if ".mlp." not in name}
        norms = {f"{prefix}self_attn.{each}_norm.weight": (head_size,) for each in "qk"}
        experts = {
            name.replace(".mlp.", f".mlp.experts.{expert}."): size
            for expert in range(self.num_experts)
            for name, size in dense.items()
            if ".mlp." in name
        }
        router = {f"{prefix}mlp.gate.weight": (self.num_experts, self.hidden_size)}
        return attention | norms | router | experts

    def config(self) -> dict[str, Any]:
        """Return transformers' config."""
        return LlamaShape.config(self) | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": self.hidden_size // self.num_heads,
            "moe_intermediate_size": self.intermediate_size,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.experts_per_token,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_theta": 10000.0,
        }


# 6.2 GB
SIX_GB = LlamaShape(hidden_size=4096, intermediate_size=11008, num_blocks=16, num_heads=32, num_kv_heads=8)
# 2.6 GB, of which a token needs 0.5
MOE = MoeShape(
    hidden_size=2048,
    intermediate_size=768,
    num_blocks=7,
    num_heads=16,
    num_kv_heads=8,
    num_experts=32,
    experts_per_token=4,
)
SMALL_MOE = MoeShape(
    hidden_size=512,
    intermediate_size=256,
    num_blocks=6,
    num_heads=8,
    num_kv_heads=4,
    vocab_size=16000,
    num_experts=8,
    experts_per_token=2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        directory: its folder.
        shape: its shape.
        block_bytes: bytes of all decoder blocks.
        routed_bytes: bytes of the blocks that one token needs; all of them unless there are experts.
    """

    directory: Path
    shape: LlamaShape
    block_bytes: int
    routed_bytes: int

    @property
    def block_files(self) -> list[Path]:
        """The files that hold decoder blocks alone."""
        return sorted(self.directory.glob("*.safetensors"))[:-1]


def write_checkpoint(directory: Path, shape: LlamaShape) -> Checkpoint:
    """Write a checkpoint with random weights, and a tokenizer, which some peers insist on."""
    write_llama(directory, shape, repeats=True)
    words = {f"t{token}": token for token in range(shape.vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="t0")).save(str(directory / "tokenizer.json"))
    # by hand: what transformers 5 writes, transformers 4 does not read
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t1", "pad_token": "t0"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {
        name: shape.element_bytes * prod(size)
        for block in range(shape.num_blocks)
        for name, size in shape.tensors_of_block(block).items()
    }
    expert_bytes = sum(size for name, size in sizes.items() if ".experts." in name)
    block_bytes = sum(sizes.values())
    idle_bytes = 0
    if isinstance(shape, MoeShape):
        idle_bytes = expert_bytes * (shape.num_experts - shape.experts_per_token) // shape.num_experts
    return Checkpoint(
        directory=directory,
        shape=shape,
        block_bytes=block_bytes,
        routed_bytes=block_bytes - idle_bytes,
    )
