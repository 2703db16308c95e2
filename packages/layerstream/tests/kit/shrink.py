"""Make a tiny config for any causal language model of transformers, without knowing the model.

Test kit. Takes the default config of a model type and replaces every size whose name it recognises, in
sub-configs too; lists with one entry per layer are cut to the new number of layers. Some types need more
settings: `SPECIAL`.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

NUM_LAYERS = 4
_NAMES_BY_SIZE: tuple[tuple[int, str], ...] = (
    (
        NUM_LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_decoder_layers num_encoder_layers depth num_blocks",
    ),
    (
        64,
        "hidden_size d_model n_embd dim_model embed_dim embedding_dim embedding_size emb_dim "
        "model_dim output_hidden_size attention_hidden_size",
    ),
    (
        96,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_ff dim_ff dff "
        "ffn_hidden_size feed_forward_size expert_ffn_hidden_size",
    ),
    (
        48,
        "intermediate_size_mlp shared_intermediate_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size",
    ),
    (
        32,
        "moe_intermediate_size moe_ffn_hidden_size dense_intermediate_size expert_intermediate_size",
    ),
    (
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "mamba_n_heads swa_num_attention_heads",
    ),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads"),
    (
        16,
        "head_dim swa_head_dim attention_head_dim v_head_dim qk_nope_head_dim dim_head "
        "global_head_dim swa_v_head_dim d_kv",
    ),
    (8, "qk_rope_head_dim"),
    (24, "qk_head_dim"),
    (16, "kv_lora_rank"),
    (24, "q_lora_rank o_lora_rank"),
    (211, "vocab_size vocab_size_per_layer_input"),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts num_routed_experts"),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts num_selected_experts "
        "moe_top_k",
    ),
    (
        1,
        "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups num_shared_experts "
        "n_shared_experts moe_num_shared_experts",
    ),
    (1, "first_k_dense_replace num_dense_layers moe_layer_start_index num_kv_shared_layers"),
    (256, "max_position_embeddings n_positions n_ctx max_seq_len seq_length max_sequence_length"),
    (5, "sliding_window attention_window window_size local_attention attention_chunk_size"),
    (
        16,
        "state_size mamba_d_state ssm_state_size linear_head_dim linear_key_head_dim "
        "linear_value_head_dim qk_dim_head mamba_d_head mamba_head_dim mamba_headdim",
    ),
    (8, "linear_num_key_heads linear_num_value_heads mamba_num_heads n_mamba_heads"),
    (
        16,
        "hidden_size_per_layer_input laurel_rank time_step_rank mamba_dt_rank index_head_dim altup_rank",
    ),
    (4, "index_n_heads index_topk"),
    (64, "lru_width word_embed_proj_dim"),
    (8, "rotary_dim"),
)
SIZES = {name: size for size, names in _NAMES_BY_SIZE for name in names.split()}
"""The new size of every attribute that counts something, by name."""
LAYER_COUNTS = tuple(_NAMES_BY_SIZE[0][1].split())
SPECIAL_IDS = {"pad": 0, "bos": 1, "eos": 2}
DERIVED = ("per_layer_config", "model_type", "transformers_version", "architectures", "_name_or_path")
"""Entries of a saved config that the class derives again."""
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": NUM_LAYERS},
    "blt": {"encoder_hash_byte_group_vocab": 503},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "layer_types": ["indexed_attention", "sliding_attention", "sliding_attention", "indexed_attention"],
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
    },
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 101,
        "split_ngram_parts": 1,
        "hc_lowrank": 16,
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "xlnet": {"d_head": 16, "n_head": 4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "num_mem_blocks": 1,
        "use_mamba_kernels": False,
    },
}
"""Settings that a type needs beside the generic ones, as a whole model or as a part of another."""


def shrunken_config(model_type: str) -> PretrainedConfig:
    """Return a config of `model_type` with a few thousand to a few hundred thousand parameters.

    Raises:
        Exception: whatever the config class raises when it does not accept such sizes.
    """
    config_class = CONFIG_MAPPING[model_type]
    settings = _shrink(config_class().to_dict())
    if isinstance(getattr(config_class, "layers_block_type", None), property):
        settings.pop("layers_block_type", None)
    config = config_class(**settings)
    decoder = config.get_text_config(decoder=True)
    if hasattr(decoder, "is_decoder") and not config.is_encoder_decoder:
        decoder.is_decoder = True
    return config


def _shrink(settings: dict[str, Any]) -> dict[str, Any]:
    model_type = settings.get("model_type", "")
    settings = {str(name): value for name, value in settings.items() if name not in DERIVED}
    old_num_layers = next((settings[name] for name in LAYER_COUNTS if isinstance(settings.get(name), int)), 0)
    shrunken = {name: _shrunken(name, value, old_num_layers) for name, value in settings.items()}
    if "qk_rope_head_dim" in shrunken and "head_dim" in shrunken:
        shrunken["head_dim"] = shrunken["qk_rope_head_dim"]
    if "kv_lora_rank" in shrunken and "num_key_value_heads" in shrunken:
        shrunken["num_key_value_heads"] = shrunken["num_attention_heads"]
    shrunken.update(SPECIAL.get(model_type, {}))
    return shrunken


def _shrunken(name: str, value: Any, old_num_layers: int) -> Any:
    if isinstance(value, dict):
        return _shrink(value)
    if isinstance(value, list) and len(value) == old_num_layers > NUM_LAYERS:
        return _cut(value)
    special = re.fullmatch(r"(?:.*_)?(pad|bos|eos)_(?:token_)?(?:id|index)", name)
    if special and value is not None:
        return SPECIAL_IDS[special.group(1)]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return value
    return min(
        value,
        SIZES["vocab_size"] - 1 if re.fullmatch(r".*token_(id|index)", name) else SIZES.get(name, value),
    )


def _cut(per_layer: list[Any]) -> list[Any]:
    """Return the first layers; the last of them is of a kind that would otherwise be missing."""
    kept = per_layer[:NUM_LAYERS]
    missing = [kind for kind in per_layer if kind not in kept]
    return [*kept[:-1], missing[0]] if missing else kept
