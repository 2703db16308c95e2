"""Greedy generation, pass by pass, with any model that has transformers' forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cold_files import drop_page_cache
from transformers import DynamicCache

from peers.protocol import Prompts


class ForwardSteps:
    """Sequences of one model; prompts of unequal lengths are padded on the left."""

    def __init__(self, model: Any, config: Any) -> None:
        self._model = model
        self._config = config

    def start(self, prompts: Prompts) -> list[int]:
        """Run the prompts and return the next token of each."""
        longest = max(map(len, prompts))
        self._cache = DynamicCache(config=self._config)
        self._mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
        return self._forward(torch.tensor([[0] * (longest - len(each)) + each for each in prompts]))

    def step(self, tokens: list[int]) -> list[int]:
        """Append one token to every sequence and return the next of each."""
        self._mask = torch.cat([self._mask, torch.ones(len(tokens), 1, dtype=self._mask.dtype)], dim=1)
        return self._forward(torch.tensor(tokens).unsqueeze(1))

    def _forward(self, ids: torch.Tensor) -> list[int]:
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.no_grad():
            logits = self._model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        found: list[int] = logits[:, -1].argmax(-1).tolist()
        return found


class ForwardPeer:
    """A peer whose model has transformers' forward; `load` sets the steps and where the weights are read."""

    _steps: ForwardSteps
    _directory: Path

    def start(self, prompts: Prompts) -> list[int]:
        """Run the prompts."""
        return self._steps.start(prompts)

    def step(self, tokens: list[int]) -> list[int]:
        """Append one token to every sequence."""
        return self._steps.step(tokens)

    def drop_caches(self) -> None:
        """Drop the weights from the page cache."""
        drop_page_cache(self._directory)
