"""Load a checkpoint's tokenizer, from a directory or the Hub."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoint.hub import resolve_model
from ..errors import CheckpointError, first_line


def load_tokenizer(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer.

    Raises:
        CheckpointError: it has no tokenizer that transformers can read, or the checkpoint is not found.
    """
    directory = resolve_model(model, revision=revision, weights=False)
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"cannot read a tokenizer from {model!r}: {first_line(error)}") from error
