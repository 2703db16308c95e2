"""The small files of a checkpoint: config, generation settings, tokenizer.

Next to pickled weights they are there and are copied. A GGUF file holds them as metadata, from which
transformers makes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from ..architecture.skeleton import check_config, read_config
from ..checkpoint.foreign import PICKLED_INDEX
from ..checkpoint.index import CONFIG_NAME
from ..errors import CheckpointNotFoundError, UnsupportedFormatError, first_line
from ..spec.options import LoadOptions

_GENERATION_CONFIG = "generation_config.json"
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "README*", "LICENSE*", "NOTICE*")

# What transformers' own reading of the metadata leaves at the default of the config's class.
_SETTINGS = {
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# transformers may raise any of these for metadata that it does not expect.
_NOT_UNDERSTOOD = (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, ImportError)


class ModelFiles(Protocol):
    """The small files of the model that is converted."""

    @property
    def config(self) -> PreTrainedConfig:
        """The config that the causal model is built from."""

    def write_first(self, target: Path) -> None:
        """Write to `target` what does not depend on the weights: everything but the config."""

    def config_text(self, dtype: str | None, architecture: str) -> bytes:
        """Return the content of `config.json`.

        Args:
            dtype: what the config should give as the dtype; None where the weights' dtypes are unchanged.
            architecture: the name of the model's class.
        """


class CopiedFiles:
    """Files that lie next to the weights."""

    def __init__(self, directory: Path, *, trust_remote_code: bool) -> None:
        """Read the config.

        Raises:
            CheckpointNotFoundError: there is none.
            UnsupportedModelError: transformers has no causal language model for it.
            UnsupportedFormatError: it describes quantized weights.
        """
        if not (directory / CONFIG_NAME).is_file():
            raise CheckpointNotFoundError(
                f"{directory} has no {CONFIG_NAME}; put the model's config next to its weights"
            )
        self._directory = directory
        self.config = read_config(directory, LoadOptions(trust_remote_code=trust_remote_code))

    def write_first(self, target: Path) -> None:
        """Copy everything but weights, their index and the config."""
        for pattern in _COPIED:
            for path in sorted(self._directory.glob(pattern)):
                if path.is_file() and path.name not in (CONFIG_NAME, PICKLED_INDEX):
                    shutil.copyfile(path, target / path.name)

    def config_text(self, dtype: str | None, architecture: str) -> bytes:
        """Return the config as it is, but for its dtype."""
        text = (self._directory / CONFIG_NAME).read_bytes()
        if dtype is None:
            return text
        fields = json.loads(text)
        fields.pop("torch_dtype", None)
        return _as_json({**fields, "dtype": dtype})


class GgufFiles:
    """Files that are made of a GGUF file's metadata."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], *, vocabulary: int, has_head: bool) -> None:
        """Make the config and the tokenizer.

        Args:
            path: the file; of several parts, the first.
            metadata: its metadata.
            vocabulary: the rows of the embedding.
            has_head: the head has weights of its own.

        Raises:
            UnsupportedFormatError: transformers cannot make them.
            UnsupportedModelError: transformers has no causal language model for the config.
        """
        try:
            config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
            self._tokenizer = (
                AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
                if "tokenizer.ggml.tokens" in metadata
                else None
            )
        except _NOT_UNDERSTOOD as error:
            raise UnsupportedFormatError(
                f"transformers cannot make a config and a tokenizer of {path}: {first_line(error)}; use the "
                "original checkpoint of the model instead"
            ) from error
        prefix = metadata["general.architecture"]
        for key, name in _SETTINGS.items():
            if f"{prefix}.{key}" in metadata and hasattr(config, name):
                setattr(config, name, metadata[f"{prefix}.{key}"])
        config.vocab_size = vocabulary
        # the head may be in another part than the one that transformers has read
        config.tie_word_embeddings = not has_head
        self.config = check_config(config)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file holds a tokenizer."""
        return self._tokenizer is not None

    def write_first(self, target: Path) -> None:
        """Write the tokenizer and the generation settings."""
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(target)
        GenerationConfig.from_model_config(self.config).save_pretrained(target)

    def config_text(self, dtype: str | None, architecture: str) -> bytes:
        """Return the config with its dtype."""
        fields = self.config.to_diff_dict()
        fields.pop("_name_or_path", None)
        return _as_json({**fields, "architectures": [architecture], "dtype": dtype})


def _as_json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
