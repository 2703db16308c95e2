"""Load a checkpoint's tokenizer, from a directory or the Hub."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoint.hub import resolve_model
from ..errors import CheckpointError, first_line
from ..spec.options import LoadOptions


def load_tokenizer(model: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer, from the same place as its weights.

    Args:
        model: a directory or a Hub id.
        options: how the model is loaded; only what says where its files are is used, and remote code.

    Raises:
        CheckpointError: it has no tokenizer that transformers can read, or the checkpoint is not found.
    """
    directory = resolve_model(model, options, weights=False)
    try:
        return AutoTokenizer.from_pretrained(
            directory, subfolder=options.subfolder, trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"cannot read a tokenizer from {model!r}: {first_line(error)}") from error
