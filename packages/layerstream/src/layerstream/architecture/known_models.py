"""Well-known models as the numbers of their configs, and the number of parameters that a config makes.

Room: architecture. It knows transformers' config classes. It stores no number that follows from a config:
parameters are counted on an empty model on the meta device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..errors import CheckpointNotFoundError, UnsupportedModelError


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


def known_config(name: str) -> PretrainedConfig:
    """Return the config of the known model `name`, in fp16.

    Raises:
        UnsupportedModelError: `KNOWN_MODELS` has no such entry.
    """
    known = KNOWN_MODELS.get(name)
    if known is None:
        raise UnsupportedModelError(f"{name!r} is not a known model; use one of {', '.join(KNOWN_MODELS)}")
    config = AutoConfig.for_model(known.model_type, **known.settings)
    config.name_or_path = known.title
    config.dtype = "float16"
    return config


def config_from_file(path: Path) -> PretrainedConfig:
    """Return the config in the JSON file `path`, such as a checkpoint's `config.json`.

    Raises:
        CheckpointNotFoundError: the file cannot be read.
        UnsupportedModelError: it is not a config of an architecture that transformers knows.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**fields)
    except OSError as error:
        raise CheckpointNotFoundError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{path} is not a config that transformers understands: {error}"
        ) from error
    config.name_or_path = str(path)
    return config


def count_parameters(config: PretrainedConfig) -> int:
    """Return the number of parameters of the config's model, ties counted once; nothing is allocated.

    Raises:
        UnsupportedModelError: transformers has no causal language model for the config.
    """
    try:
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UnsupportedModelError(
            f"transformers has no causal language model for {config.model_type!r}: {error}"
        ) from error
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())
