"""The `resident` variant: plain transformers, generating through its text-generation pipeline.

Runs in the worker. Its results must equal the streamed variant's, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import pipeline

from ..case import Case
from .loaded import Loaded, load_with_transformers


def load(case: Case) -> Loaded:
    """Load the case's model with `from_pretrained`, without quantization."""
    loaded = load_with_transformers(case)
    loaded.generate = _Pipeline(loaded)
    loaded.describe = lambda: {
        "generated_by": loaded.generate.used if isinstance(loaded.generate, _Pipeline) else "generate"
    }
    return loaded


class _Pipeline:
    """Generate through `pipeline("text-generation")`, if the pipeline can tokenize the prompt itself.

    Attributes:
        used: what generated last, as text.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Build the pipeline around the loaded model, which stays where it is."""
        self._loaded = loaded
        self._pipe = pipeline("text-generation", model=loaded.model, tokenizer=loaded.tokenizer)
        self.used = ""

    def __call__(self, *, prompt_ids: torch.Tensor, messages: Any, **arguments: Any) -> torch.Tensor:
        """Generate from `messages` (a chat or a text); if None, from `prompt_ids`, shape [1, tokens].

        Raises:
            ValueError: the pipeline tokenized the prompt differently from the other variants.
        """
        if messages is None:
            self.used = "model.generate, because the prompt was resized to a number of tokens"
            whole: torch.Tensor = self._loaded.model.generate(prompt_ids, **arguments)
            return whole
        self.used = 'pipeline("text-generation")'
        result = self._pipe(messages, return_tensors=True, **arguments)
        token_ids = torch.tensor(result[0]["generated_token_ids"])[None]
        expected = prompt_ids.cpu()
        if not torch.equal(token_ids[:, : expected.shape[1]], expected):
            raise ValueError(
                "the pipeline tokenized the prompt differently from the other variants: the results "
                "cannot be compared"
            )
        return token_ids
