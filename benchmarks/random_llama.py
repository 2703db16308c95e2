"""Write checkpoints of Llamas with random weights, in the shapes that the benchmarks use."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The shape of a Llama with random weights; the head is untied."""

    hidden_size: int
    intermediate_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 32000
    dtype: str = "bfloat16"

    def tensors_of_block(self, block: int) -> dict[str, tuple[int, ...]]:
        """Return the stored names and shapes of one block."""
        kv_size = self.hidden_size // self.num_heads * self.num_kv_heads
        square, wide = (self.hidden_size, self.hidden_size), (self.intermediate_size, self.hidden_size)
        shapes = {
            "input_layernorm": (self.hidden_size,),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
            "mlp.gate_proj": wide,
            "mlp.up_proj": wide,
            "post_attention_layernorm": (self.hidden_size,),
            "self_attn.k_proj": (kv_size, self.hidden_size),
            "self_attn.o_proj": square,
            "self_attn.q_proj": square,
            "self_attn.v_proj": (kv_size, self.hidden_size),
        }
        return {f"model.layers.{block}.{name}.weight": shape for name, shape in shapes.items()}

    def edges(self) -> dict[str, tuple[int, ...]]:
        """Return the stored names and shapes of everything outside the blocks."""
        table = (self.vocab_size, self.hidden_size)
        return {
            "model.embed_tokens.weight": table,
            "model.norm.weight": (self.hidden_size,),
            "lm_head.weight": table,
        }

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return getattr(torch, self.dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        blocks = [self.tensors_of_block(block) for block in range(self.num_blocks)]
        return self.element_bytes * sum(
            prod(shape) for part in [*blocks, self.edges()] for shape in part.values()
        )

    def config(self) -> dict[str, Any]:
        """Return transformers' config."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_blocks,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": self.dtype,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        }


# 0.44 GB of blocks + 0.13 GB of edges
HALF_GB = LlamaShape(hidden_size=1024, intermediate_size=2816, num_blocks=20, num_heads=16, num_kv_heads=8)
# 1.54 GB
ONE_AND_A_HALF_GB = LlamaShape(
    hidden_size=2048, intermediate_size=5632, num_blocks=16, num_heads=16, num_kv_heads=8
)
TINY = LlamaShape(
    hidden_size=64, intermediate_size=160, num_blocks=4, num_heads=4, num_kv_heads=2, vocab_size=512
)
# so small that the interpreter's share of a forward shows
MANY_BLOCKS = LlamaShape(
    hidden_size=64, intermediate_size=160, num_blocks=32, num_heads=4, num_kv_heads=2, vocab_size=512
)
# 0.21 GB, for --quick
SMALL = LlamaShape(
    hidden_size=768, intermediate_size=2112, num_blocks=12, num_heads=12, num_kv_heads=6, vocab_size=16000
)
LLAMA_70B = LlamaShape(
    hidden_size=8192, intermediate_size=28672, num_blocks=80, num_heads=64, num_kv_heads=8, dtype="float16"
)


def write_llama(
    directory: Path,
    shape: LlamaShape,
    *,
    blocks_per_shard: int = 4,
    sparse: bool = False,
    repeats: bool = False,
) -> Path:
    """Write a random Llama as sharded safetensors, tensor by tensor: at most one tensor is in memory.

    Args:
        directory: created by this function.
        shape: the model's shape.
        blocks_per_shard: decoder blocks in one file.
        sparse: write headers only; holes (zeros that take no disk space) stand for the weights.
        repeats: take all matrices from one block of random values: written as fast as the disk allows.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(shape.config(), indent=1))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "pad_token_id": 0}))
    starts = range(0, shape.num_blocks, blocks_per_shard)
    shards = [
        _join(shape, range(start, min(start + blocks_per_shard, shape.num_blocks))) for start in starts
    ] + [shape.edges()]
    places = {}
    values = RepeatedValues(shape.dtype) if repeats else FreshValues(shape.dtype)
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / name, tensors, shape, None if sparse else values)
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": shape.weight_bytes}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _join(shape: LlamaShape, blocks: range) -> dict[str, tuple[int, ...]]:
    return {name: size for block in blocks for name, size in shape.tensors_of_block(block).items()}


def _write_shard(
    path: Path,
    tensors: dict[str, tuple[int, ...]],
    shape: LlamaShape,
    values: FreshValues | RepeatedValues | None,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        start, end = end, end + prod(size) * shape.element_bytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPE[shape.dtype],
            "shape": list(size),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if values is None:
            file.truncate(8 + len(text) + end)
            return
        for name, size in tensors.items():
            for part in values.bytes_of(name, size):
                file.write(part)
        file.flush()
        os.fsync(file.fileno())


class FreshValues:
    """Values of a fresh model: ones for norms, otherwise normal with deviation 0.02."""

    def __init__(self, dtype: str) -> None:
        self._dtype = getattr(torch, dtype)
        self._generator = torch.Generator().manual_seed(0)

    def bytes_of(self, name: str, size: tuple[int, ...]) -> Iterator[memoryview]:
        """Yield one tensor's bytes."""
        tensor = (
            torch.ones(size) if "norm" in name else torch.randn(*size, generator=self._generator).mul_(0.02)
        )
        yield _as_bytes(tensor.to(self._dtype))


class RepeatedValues:
    """The same, but every matrix begins anywhere in one block of values and goes round in it."""

    def __init__(self, dtype: str, num_values: int = 2**23 + 1) -> None:
        self._fresh = FreshValues(dtype)
        (self._block,) = self._fresh.bytes_of("block", (num_values,))
        self._at = 0
        self._element_bytes = getattr(torch, dtype).itemsize

    def bytes_of(self, name: str, size: tuple[int, ...]) -> Iterator[memoryview]:
        """Yield one tensor's bytes in parts."""
        if "norm" in name:
            yield from self._fresh.bytes_of(name, size)
            return
        left_bytes = prod(size) * self._element_bytes
        while left_bytes:
            part = self._block[self._at : self._at + left_bytes]
            yield part
            left_bytes -= len(part)
            self._at = (self._at + len(part)) % len(self._block)


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).reshape(-1).numpy())
