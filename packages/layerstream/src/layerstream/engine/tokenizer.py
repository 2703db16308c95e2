"""The tokenizer of a checkpoint, wherever that is.

Layer: composition. Knows names of checkpoints and transformers' tokenizers; knows no weights.
"""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoint.hub import resolve_model
from ..errors import CheckpointError, first_line


def load_tokenizer(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer.

    Raises:
        CheckpointError: when it has none that transformers can read, or the checkpoint cannot be found.
    """
    directory = resolve_model(model, revision=revision, weights=False)
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"no tokenizer can be read from {model!r}: {first_line(error)}") from error
