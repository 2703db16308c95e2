"""A micro-batch as tensors, and its rows as answers.

Layer: uses. Knows padding, end tokens and stop texts; knows nothing of sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .requests import GenerationRequest, GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRequest:
    """A request whose prompt is tokens.

    Attributes:
        index: its place among those given.
        request: as it was given.
        ids: the prompt's tokens.
    """

    index: int
    request: GenerationRequest
    ids: tuple[int, ...]


def pad_token(model: PreTrainedModel) -> int:
    """Return the token that `model` is padded with: its own, else its end token, else 0; masked in any case."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(model.generation_config, name, None)
        found = found[0] if isinstance(found, (list, tuple)) and found else found
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, both (rows, longest) int64 on `device`, padded on the left with `pad`."""
    longest = max(len(row) for row in rows)
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


class AnswerReader:
    """Takes answers out of what `generate()` returns."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Take the end tokens from the model's generation config; without a tokenizer answers have no text."""
        ends = getattr(model.generation_config, "eos_token_id", None)
        self._ends = frozenset(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
        self._tokenizer = tokenizer

    def read(
        self, prepared: TokenizedRequest, new_tokens: Sequence[int], seed: int | None
    ) -> GenerationResult:
        """Return the answer in one row's new tokens: up to its end, and no longer than was asked for."""
        request = prepared.request
        tokens, is_ended = self._cut(request, list(new_tokens)[: request.max_new_tokens])
        return GenerationResult(
            index=prepared.index,
            request=request,
            prompt_tokens=len(prepared.ids),
            tokens=tuple(tokens),
            text=None
            if self._tokenizer is None
            else str(self._tokenizer.decode(tokens, skip_special_tokens=True)),
            finish_reason="stop" if is_ended else "length",
            seed=seed,
        )

    def _cut(self, request: GenerationRequest, tokens: list[int]) -> tuple[list[int], bool]:
        ends = (
            self._ends
            if request.options.get("eos_token_id") is None
            else _as_set(request.options["eos_token_id"])
        )
        for place, token in enumerate(tokens):
            if token in ends or (request.stop and self._holds_stop(request.stop, tokens[: place + 1])):
                return tokens[: place + 1], True
        return tokens, False

    def _holds_stop(self, stop: tuple[str, ...], tokens: list[int]) -> bool:
        assert self._tokenizer is not None
        text = self._tokenizer.decode(tokens)
        return any(each in text for each in stop)


def _as_set(ids: Any) -> frozenset[int]:
    return frozenset(ids) if isinstance(ids, (list, tuple)) else frozenset([ids])
