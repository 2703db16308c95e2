"""Load a checkpoint's tokenizer, from a directory or the Hub."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoint.hub import resolve_model
from ..errors import CheckpointError
from ..spec.options import LoadOptions
from .inspect import find_checkpoint

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
_MOST_CHARACTERS = 300


def load_tokenizer(model: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer, from the same place as its weights.

    Args:
        model: a directory or a Hub id.
        options: how the model is loaded; only what says where its files are is used, and remote code.

    Raises:
        CheckpointError: the checkpoint is not found or cannot be used, or it has no tokenizer that
            transformers can read.
    """
    directory = resolve_model(model, options, weights=False)
    try:
        return AutoTokenizer.from_pretrained(
            directory, subfolder=options.subfolder, trust_remote_code=options.trust_remote_code
        )
    except (OSError, TypeError, ValueError, ImportError) as error:
        # where the checkpoint cannot be used at all, that is the reason to report
        find_checkpoint(model, options, weights=False)
        raise CheckpointError(_refusal(model, directory / options.subfolder, error)) from error


def _refusal(model: str, directory: Path, error: Exception) -> str:
    if not any((directory / file).is_file() for file in _FILES):
        return (
            f"cannot read a tokenizer from {model!r}: it has none of {', '.join(_FILES)}; copy these files "
            "there from the model that it was made from"
        )
    return f"cannot read a tokenizer from {model!r}: {' '.join(str(error).split())[:_MOST_CHARACTERS]}"
