"""Write a checkpoint of a Llama or a Qwen3-MoE as one GGUF file in the same dtype, tensor by tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, Any]

BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
EXPERT_NAMES = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
KINDS = {"bfloat16": gguf.GGMLQuantizationType.BF16, "float32": gguf.GGMLQuantizationType.F32}
FLOAT32_TENSORS = ("norm.weight", "ffn_gate_inp.weight")
"""What llama.cpp wants in fp32, whatever the model's dtype is."""


def write_gguf(directory: Path, path: Path) -> None:
    """Write the checkpoint in `directory` to `path`."""
    config = json.loads((directory / "config.json").read_text())
    stored = _open_shards(directory)
    stored_kind = KINDS[config["dtype"]]
    architecture = {"llama": "llama", "qwen3_moe": "qwen3moe"}[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    _add_settings(writer, config)
    tensors = _tensors(stored, config, is_permuted=architecture == "llama")
    for name, (shape, make) in tensors.items():
        kind = gguf.GGMLQuantizationType.F32 if name.endswith(FLOAT32_TENSORS) else stored_kind
        num_bytes = int(np.prod(shape)) * (4 if kind == gguf.GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw_dtype=kind)
        del make
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (_, make) in tensors.items():
        values = make()
        writer.write_tensor_data(_widened(values) if name.endswith(FLOAT32_TENSORS) else values)
    writer.close()


def _open_shards(directory: Path) -> dict[str, Array]:
    """Return every stored tensor, mapped: fp32, or bf16 as 16-bit words."""
    stored = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes))
        stored_bytes = np.memmap(path, np.uint8, "r", offset=8 + header_bytes)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            kind = np.float32 if entry["dtype"] == "F32" else np.uint16
            stored[name] = stored_bytes[start:end].view(kind).reshape(entry["shape"])
    return stored


def _tensors(
    stored: dict[str, Array], config: dict[str, Any], *, is_permuted: bool
) -> dict[str, tuple[tuple[int, ...], Callable[[], Array]]]:
    """Return shape and maker of each GGUF tensor, by name."""
    edges = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    made: dict[str, tuple[tuple[int, ...], Callable[[], Array]]] = {}
    for name, values in stored.items():
        if name in edges:
            made[edges[name]] = (values.shape, lambda values=values: values)
            continue
        _, _, block, rest = name.split(".", 3)
        part = rest.removesuffix(".weight")
        if part.startswith("mlp.experts."):
            continue
        heads = {
            "self_attn.q_proj": config["num_attention_heads"],
            "self_attn.k_proj": config["num_key_value_heads"],
        }.get(part)
        turn = heads if is_permuted else None
        made[f"blk.{block}.{BLOCK_NAMES[part]}.weight"] = (
            values.shape,
            lambda values=values, turn=turn: values if turn is None else _permuted(values, turn),
        )
    for block in range(config["num_hidden_layers"]):
        for ours, theirs in EXPERT_NAMES.items():
            count = config.get("num_experts", 0)
            names = [f"model.layers.{block}.mlp.experts.{each}.{ours}.weight" for each in range(count)]
            if names:
                shape = (count, *stored[names[0]].shape)
                made[f"blk.{block}.{theirs}.weight"] = (
                    shape,
                    lambda names=names: np.stack([stored[name] for name in names]),
                )
    return made


def _permuted(values: Array, num_heads: int) -> Array:
    """Return the rows in the order that llama.cpp's rotary embedding takes for Llamas: halves interleaved."""
    rows, columns = values.shape
    return values.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _widened(values: Array) -> Array:
    """Return fp32 as it is, and bf16 words as fp32."""
    if values.dtype == np.float32:
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def _add_settings(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    head_size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config["vocab_size"])
    is_bf16 = config["dtype"] == "bfloat16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if is_bf16 else gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
