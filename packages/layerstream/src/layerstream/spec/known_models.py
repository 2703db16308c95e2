"""Well-known models as the numbers of their configs; parameters are counted from them, not stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """The config of a published model.

    Attributes:
        title: its name in texts.
        model_type: transformers' name of the architecture.
        settings: the config's keywords that differ from the architecture's defaults.
    """

    title: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


KNOWN_MODELS: Mapping[str, KnownModel] = {
    "gpt-3-175b": KnownModel(
        # Its weights were never published: GPT-2's architecture with the sizes of the paper's table 2.1.
        title="GPT-3 175B",
        model_type="gpt2",
        settings={"n_layer": 96, "n_embd": 12288, "n_head": 96, "n_positions": 2048, "vocab_size": 50257},
    ),
    "bloom-176b": KnownModel(
        title="BLOOM 176B",
        model_type="bloom",
        settings={"n_layer": 70, "hidden_size": 14336, "n_head": 112, "vocab_size": 250880},
    ),
    "llama-2-70b": KnownModel(
        title="Llama-2-70B",
        model_type="llama",
        settings={
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
            "vocab_size": 32000,
            "rms_norm_eps": 1e-5,
        },
    ),
    "falcon-40b": KnownModel(
        title="Falcon-40B",
        model_type="falcon",
        settings={
            "hidden_size": 8192,
            "num_hidden_layers": 60,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
            "vocab_size": 65024,
        },
    ),
    "mpt-30b": KnownModel(
        title="MPT-30B",
        model_type="mpt",
        settings={"d_model": 7168, "n_heads": 64, "n_layers": 48, "max_seq_len": 8192, "vocab_size": 50432},
    ),
    "starcoder-15.5b": KnownModel(
        title="StarCoder 15.5B",
        model_type="gpt_bigcode",
        settings={
            "n_embd": 6144,
            "n_layer": 40,
            "n_head": 48,
            "n_inner": 24576,
            "n_positions": 8192,
            "vocab_size": 49152,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}

"""The models that can be named without a checkpoint."""
