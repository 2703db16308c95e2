"""Tiny checkpoints of many model families, with nothing at its initial value.

Test kit. Uses transformers' public classes only and nothing of layerstream: it writes what any user's
`save_pretrained` writes, so fused experts, ties and renamed weights are on disk in their public layout.

A freshly initialised model hides errors: norms are ones, biases are zeros, and logits are nearly flat. Here
every parameter and every floating-point persistent buffer gets its own random values, scaled so that logits
are spread out and fp16 stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GQA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "max_position_embeddings": 256,
    **TOKENS,
}
"""The sizes of Llama-like configs: grouped queries, an odd number of blocks, a prime vocabulary size."""

MHA: dict[str, Any] = {**GQA, "num_key_value_heads": 4}
HEAD: dict[str, Any] = {"head_dim": 16}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 5,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 211,
    **TOKENS,
}
OPT: dict[str, Any] = {
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 173,
    "max_position_embeddings": 128,
    **TOKENS,
}
FALCON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 197,
    **TOKENS,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 40, "num_experts": 5, "num_experts_per_tok": 2}
MLA: dict[str, Any] = {
    **MHA,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}


def _config(model_type: str, *settings: dict[str, Any], **more: Any) -> Callable[[], PretrainedConfig]:
    """Return a function that makes the config of `model_type` with `settings`; later ones win."""
    merged: dict[str, Any] = {}
    for setting in (*settings, more):
        merged.update(setting)
    return lambda: AutoConfig.for_model(model_type, **merged)


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": _config("llama", GQA),
    "llama_tied": _config("llama", GQA, tie_word_embeddings=True, num_hidden_layers=4),
    "llama3_rope": _config("llama", GQA, rope_parameters=LLAMA3_ROPE, attention_bias=True, mlp_bias=True),
    "gpt2": _config("gpt2", GPT),
    "bloom": _config("bloom", hidden_size=64, n_layer=5, n_head=4, vocab_size=193, **TOKENS),
    "falcon_old_decoder": _config(
        "falcon", FALCON, multi_query=True, parallel_attn=True, alibi=False, bias=False
    ),
    "falcon_new_decoder": _config(
        "falcon", FALCON, new_decoder_architecture=True, num_kv_heads=2, alibi=False
    ),
    "falcon_alibi": _config("falcon", FALCON, multi_query=False, parallel_attn=False, alibi=True, bias=True),
    "mpt": _config(
        "mpt", d_model=64, n_layers=5, n_heads=4, vocab_size=191, max_seq_len=128, expansion_ratio=2, **TOKENS
    ),
    "gpt_bigcode": _config("gpt_bigcode", GPT, multi_query=True),
    "opt": _config("opt", OPT, word_embed_proj_dim=64, do_layer_norm_before=True),
    "opt_norm_after_and_projected": _config("opt", OPT, word_embed_proj_dim=32, do_layer_norm_before=False),
    "gpt_neox": _config("gpt_neox", MHA),
    "mistral_sliding": _config("mistral", GQA, sliding_window=5),
    "qwen2": _config("qwen2", GQA),
    "qwen3": _config("qwen3", GQA, HEAD, tie_word_embeddings=True),
    "qwen3_moe": _config("qwen3_moe", GQA, HEAD, EXPERTS, mlp_only_layers=[1]),
    "mixtral": _config("mixtral", GQA, num_local_experts=5, num_experts_per_tok=2),
    "olmoe": _config("olmoe", MHA, num_experts=6, num_experts_per_tok=2),
    "gemma2": _config(
        "gemma2", GQA, HEAD, sliding_window=5, query_pre_attn_scalar=16, attn_implementation="eager"
    ),
    "gemma3_text": _config(
        "gemma3_text", GQA, HEAD, sliding_window=5, query_pre_attn_scalar=16, num_hidden_layers=7
    ),
    "phi": _config("phi", MHA),
    "phi3": _config("phi3", GQA),
    "gpt_oss": _config("gpt_oss", GQA, HEAD, num_local_experts=4, num_experts_per_tok=2, sliding_window=5),
    "deepseek_v2": _config("deepseek_v2", MLA),
    "deepseek_v3": _config("deepseek_v3", MLA),
    "starcoder2": _config("starcoder2", GQA),
    "cohere": _config("cohere", GQA, use_qk_norm=True),
    "stablelm": _config("stablelm", GQA),
    "granitemoe": _config("granitemoe", GQA, num_local_experts=4, num_experts_per_tok=2),
    "gptj": _config("gptj", GPT, rotary_dim=8),
    "gpt_neo": _config(
        "gpt_neo",
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
        vocab_size=181,
        max_position_embeddings=128,
        **TOKENS,
    ),
    "codegen": _config("codegen", GPT, rotary_dim=8, n_ctx=128),
    "biogpt": _config("biogpt", MHA),
    "ctrl": _config("ctrl", GPT, dff=96),
    "phimoe": _config("phimoe", GQA, num_local_experts=4, num_experts_per_tok=2),
    "jamba": _config(
        "jamba",
        GQA,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
    ),
    "qwen3_next": _config(
        "qwen3_next",
        GQA,
        HEAD,
        EXPERTS,
        num_hidden_layers=4,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        shared_expert_intermediate_size=24,
    ),
    "mamba2": _config(
        "mamba2",
        hidden_size=64,
        num_hidden_layers=5,
        num_heads=8,
        head_dim=16,
        state_size=16,
        n_groups=2,
        vocab_size=179,
        **TOKENS,
    ),
    "zamba2": _config(
        "zamba2",
        MHA,
        num_hidden_layers=6,
        layers_block_type=["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
        mamba_d_state=16,
        n_mamba_heads=8,
        mamba_ngroups=1,
        num_mem_blocks=1,
        use_shared_attention_adapter=False,
        use_mamba_kernels=False,
    ),
    "llama4_text": _config(
        "llama4_text",
        GQA,
        HEAD,
        num_hidden_layers=4,
        intermediate_size_mlp=96,
        num_local_experts=4,
        moe_layers=[1, 3],
        attention_chunk_size=8,
    ),
    "glm4_moe": _config(
        "glm4_moe", GQA, HEAD, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2
    ),
    "minimax": _config("minimax", GQA, HEAD, num_local_experts=4, num_experts_per_tok=2, block_size=4),
    "gemma3n_text": _config(
        "gemma3n_text",
        GQA,
        HEAD,
        num_hidden_layers=5,
        vocab_size_per_layer_input=199,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        num_kv_shared_layers=2,
        sliding_window=5,
        layer_types=[
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0, 0.0],
    ),
    "gemma4_text": _config(
        "gemma4_text",
        GQA,
        HEAD,
        sliding_window=5,
        vocab_size_per_layer_input=199,
        hidden_size_per_layer_input=16,
    ),
}
"""By family name, a function that makes its tiny config."""


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Give every parameter and floating-point persistent buffer of `model` its own random values, in place.

    Matrices with a mean around zero get the standard deviation 1/sqrt(last dimension); everything else
    (norms, biases, decay rates, ...) keeps its meaning and gets noise on top of its initial value.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {id(tensor): tensor for tensor in (*model.parameters(), *_persistent_buffers(model))}
    with torch.no_grad():
        for tensor in state.values():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2 and abs(float(tensor.mean())) < 0.1:
                tensor.copy_(noise / math.sqrt(tensor.shape[-1]))
            else:
                tensor.add_(noise, alpha=0.1)


def _persistent_buffers(model: PreTrainedModel) -> list[torch.Tensor]:
    saved = model.state_dict(keep_vars=True)
    return [saved[name] for name, _ in model.named_buffers() if name in saved]


def save_tiny(family: str, directory: str | Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write a tiny random checkpoint of `family` to `directory`, in several safetensors shards.

    Args:
        family: a key of `FAMILIES`.
        directory: the target; created if it is missing.
        dtype: the dtype on disk.
        seed: the seed of the random weights.

    Returns:
        The directory.
    """
    return save_tiny_config(FAMILIES[family](), directory, dtype, seed)


def save_tiny_config(
    config: PretrainedConfig, directory: str | Path, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a random checkpoint of `config` to `directory` as `save_tiny` does."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.to(dtype)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    model.save_pretrained(directory, max_shard_size=max(num_bytes // 4, 1024))
    return Path(directory)
