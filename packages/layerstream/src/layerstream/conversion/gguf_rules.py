"""Decide what becomes of each tensor of a GGUF file: its name in transformers and how its values change.

Pure: tables and arithmetic on shapes. llama.cpp renames tensors, and for some architectures it also reorders
rows or adds one to norms; these rules undo that.

Source: llama.cpp's convert_hf_to_gguf.py and gguf-py/gguf/tensor_mapping.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import UnsupportedFormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What llama.cpp does to the weights of one architecture.

    Attributes:
        parts: names of the parts of a block in transformers, by their names in the file.
        has_interleaved_rotary: rows of query and key are reordered within each head.
        has_raised_norms: norms are stored with one added.
    """

    parts: Mapping[str, str]
    has_interleaved_rotary: bool = False
    has_raised_norms: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What becomes of one tensor of a file.

    Attributes:
        name: its name in transformers; with `{expert}` where it is one tensor for each entry of its first
            dimension.
        num_heads: its rows are reordered within each of this many heads; 0 if they are not.
        is_raised: one was added to its values.
        adds_dimension: transformers has a first dimension of one more.
    """

    name: str
    num_heads: int = 0
    is_raised: bool = False
    adds_dimension: bool = False


_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORM_BEFORE = {"ffn_norm": "post_attention_layernorm"}
_NORMS_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA = _ATTENTION | _NORM_BEFORE | _FEED_FORWARD
_GEMMA = _ATTENTION | _NORMS_AROUND | _FEED_FORWARD

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gemma2": Architecture(parts=_GEMMA, has_raised_norms=True),
        "gemma3": Architecture(parts=_GEMMA | _HEAD_NORMS, has_raised_norms=True),
        "llama": Architecture(parts=_LLAMA, has_interleaved_rotary=True),
        "phi3": Architecture(parts=_FUSED | _NORM_BEFORE),
        "qwen2": Architecture(parts=_LLAMA),
        "qwen2moe": Architecture(parts=_ATTENTION | _NORM_BEFORE | _EXPERTS | _SHARED_EXPERT),
        "qwen3": Architecture(parts=_LLAMA | _HEAD_NORMS),
        "qwen3moe": Architecture(parts=_ATTENTION | _HEAD_NORMS | _NORM_BEFORE | _EXPERTS),
    }
)
"""The architectures that can be converted, by the file's `general.architecture`; Mistral is a `llama`."""

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Factors of rotary embeddings: transformers computes them from the config.
_COMPUTED = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")
_IN_BLOCK = re.compile(r"blk\.(?P<block>\d+)\.(?P<part>\w+)\.(?P<leaf>weight|bias)")
_OUTSIDE_BLOCKS = re.compile(r"(?P<part>\w+)\.(?P<leaf>weight|bias)")


def architecture_of(metadata: Mapping[str, Any], path: object) -> Architecture:
    """Return the rules for a file.

    Raises:
        UnsupportedFormatError: there are none for its architecture.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedFormatError(
            f"{path} has the architecture {name!r}; these can be converted: {', '.join(ARCHITECTURES)}. "
            "Use the original checkpoint of the model instead"
        )
    return ARCHITECTURES[name]


def is_computed(name: str) -> bool:
    """Return whether transformers computes the tensor instead of loading it."""
    return _COMPUTED.fullmatch(name) is not None


def rule_for(name: str, architecture: Architecture, metadata: Mapping[str, Any]) -> Rule | None:
    """Return what becomes of the tensor `name`; None when the architecture has no such tensor."""
    if found := _OUTSIDE_BLOCKS.fullmatch(name):
        part, prefix = _OUTSIDE.get(found["part"]), ""
    elif found := _IN_BLOCK.fullmatch(name):
        part, prefix = architecture.parts.get(found["part"]), f"model.layers.{found['block']}."
    if found is None or part is None:
        return None
    return Rule(
        name=f"{prefix}{part}.{found['leaf']}",
        num_heads=_num_heads(found["part"], metadata) if architecture.has_interleaved_rotary else 0,
        is_raised=architecture.has_raised_norms and found["part"].endswith("norm"),
        adds_dimension=found["part"] == "ffn_gate_inp_shexp",
    )


def _num_heads(part: str, metadata: Mapping[str, Any]) -> int:
    prefix = metadata["general.architecture"]
    heads = int(metadata.get(f"{prefix}.attention.head_count", 0))
    if part == "attn_q":
        return heads
    return int(metadata.get(f"{prefix}.attention.head_count_kv", heads)) if part == "attn_k" else 0
