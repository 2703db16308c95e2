"""Make transformers' configs of well-known models and of files, and count the parameters of a config."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..errors import CheckpointNotFoundError, UnsupportedModelError
from ..spec.known_models import KNOWN_MODELS


def known_config(name: str) -> PretrainedConfig:
    """Return the config of the known model `name`, in its dtype.

    Raises:
        UnsupportedModelError: `KNOWN_MODELS` has no such entry.
    """
    known = KNOWN_MODELS.get(name)
    if known is None:
        raise UnsupportedModelError(f"{name!r} is not a known model; use one of {', '.join(KNOWN_MODELS)}")
    config = AutoConfig.for_model(known.model_type, **known.settings)
    config.name_or_path = known.title
    config.dtype = known.dtype
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
