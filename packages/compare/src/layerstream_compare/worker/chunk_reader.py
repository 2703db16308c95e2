"""Feed a text to a model chunk by chunk, with a KV cache. Runs in the worker.

This is the only place here that knows what transformers calls the cache.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel


class ChunkReader:
    """Reads one text; the cache carries the model from chunk to chunk."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Start before the first chunk."""
        self._model = model
        self._parameters = inspect.signature(type(model).forward).parameters
        # 5.24 renamed it and warns about the old name; code from a repository keeps the name it knows
        self._keyword = "past_key_values" if "past_key_values" in self._parameters else "cache"
        self._cache: Any = None

    def read(self, token_ids: torch.Tensor, *, last_only: bool = False) -> torch.Tensor:
        """Read the next chunk and return its logits, shape [positions, vocabulary].

        Args:
            token_ids: the chunk, int64, shape [1, positions].
            last_only: return the last position only, and if the model supports it, compute no others.
        """
        arguments: dict[str, Any] = {"use_cache": True, self._keyword: self._cache}
        if last_only and "logits_to_keep" in self._parameters:
            arguments["logits_to_keep"] = 1
        with torch.no_grad():
            outputs = self._model(token_ids.to(self._model.device), **arguments)
        self._cache = getattr(outputs, self._keyword)
        logits: torch.Tensor = outputs.logits[0, -1:] if last_only else outputs.logits[0]
        return logits
