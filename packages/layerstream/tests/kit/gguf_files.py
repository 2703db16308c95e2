"""Write tiny GGUF files as llama.cpp's converter does.

Test kit. Names come from the package gguf; what llama.cpp does to values (rows of query and key, raised
norms) is written here as its converter writes it. Nothing of layerstream is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kit.families import randomise

Array = npt.NDArray[Any]
Store = Callable[[str, Array], tuple[Array, gguf.GGMLQuantizationType]]
TOKENS = [f"<{index}>" for index in range(4)] + [chr(0x100 + index) for index in range(256)] + ["Āā"]
RAISED = ("gemma2", "gemma3")


def tiny_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a random model in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, 0)
    return model.eval()


def as_f32(name: str, values: Array) -> tuple[Array, gguf.GGMLQuantizationType]:
    """Store everything as it is."""
    return values, gguf.GGMLQuantizationType.F32


def stored_as(kind: str) -> Store:
    """Store matrices as `kind`, and vectors as they are, as llama.cpp does."""
    number = gguf.GGMLQuantizationType[kind]

    def store(name: str, values: Array) -> tuple[Array, gguf.GGMLQuantizationType]:
        if values.ndim == 1:
            return as_f32(name, values)
        return gguf.quantize(values, number), number

    return store


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    architecture: str,
    store: Store = as_f32,
    *,
    tokenizer: bool = False,
    parts_of: int = 0,
    extra: dict[str, Array] | None = None,
) -> Path:
    """Write `model` to `path`, or to parts of `parts_of` tensors next to it, and return the first file."""
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=parts_of)
    writer.add_name("tiny")
    _add_sizes(writer, model.config)
    if tokenizer:
        _add_tokenizer(writer)
    tensors = dict(gguf_tensors(model, architecture))
    for name, values in {**tensors, **(extra or {})}.items():
        data, kind = store(name, values)
        # the writer takes the shape in bytes for whatever is not plain numbers
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(iter(sorted(path.parent.glob(f"{path.stem}*.gguf"))))


def gguf_tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of a model, named and changed as in a GGUF file."""
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    for name, values in _apart(model):
        stem, leaf = name.rsplit(".", 1)
        new = names.get_name(stem)
        assert new is not None, name
        if architecture == "llama" and new.endswith(("attn_q", "attn_k")):
            heads = model.config.num_attention_heads
            heads = heads if new.endswith("attn_q") else model.config.num_key_value_heads
            values = permuted(values, heads)
        if architecture in RAISED and stem.endswith("norm"):
            values = values + 1
        if "shared_expert_gate" in stem:
            values = values.reshape(-1)
        yield f"{new}.{leaf}", values


def permuted(values: Array, heads: int) -> Array:
    """Return rows as llama.cpp's `permute` orders them."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _apart(model: PreTrainedModel) -> Iterator[tuple[str, Array]]:
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name in tied:
            continue
        if name.endswith("experts.gate_up_proj"):
            stem, middle = name.removesuffix("gate_up_proj"), values.shape[1] // 2
            yield f"{stem}gate_proj.weight", values[:, :middle]
            yield f"{stem}up_proj.weight", values[:, middle:]
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", values
        else:
            yield name, values


def _add_sizes(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if shared := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(shared)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 4 + [1] * (len(TOKENS) - 4))
    writer.add_token_merges(["Ā ā"])
