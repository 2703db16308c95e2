"""A layer's cache for a forward that continues tokens which another cache holds. Room: architecture."""

from __future__ import annotations

from typing import Any

import torch

from . import compat


class ContinuingLayer(compat.CacheLayerMixin):
    """Says how long the past is; subclasses know where its keys and values are.

    Attributes:
        window: how many tokens a sliding layer attends to, with the current one; None for all.
    """

    def __init__(self, like: Any, num_past: int) -> None:
        """Continue `num_past` tokens in a layer whose ordinary cache is of the kind of `like`."""
        super().__init__()
        self.num_tokens = num_past
        self.window: int | None = getattr(like, "sliding_window", None)
        self.is_sliding = getattr(like, "is_sliding", False)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: there is nothing to prepare."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys there are for queries of this length, and which is the first of them."""
        if self.window is None:
            return self.num_tokens + query_length, 0
        kept = min(self.num_tokens, self.window - 1)
        return kept + query_length, self.num_tokens - kept

    def get_seq_length(self) -> int:
        """Return the number of tokens so far."""
        return self.num_tokens

    def get_max_length(self) -> int:
        """Return the sliding window; -1 without one."""
        return -1 if self.window is None else self.window
