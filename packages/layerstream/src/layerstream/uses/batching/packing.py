"""Pack requests into padded tensors, and read the answers from the output of `generate()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import PlanError
from .chat import encode_messages
from .requests import GenerationRequest, GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRequest:
    """A request with its prompt as tokens.

    Attributes:
        index: its place among the requests.
        request: the request as it was given.
        ids: the prompt's tokens.
    """

    index: int
    request: GenerationRequest
    ids: tuple[int, ...]


def prompt_ids(
    request: GenerationRequest, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> tuple[int, ...]:
    """Return the tokens of a request's prompt or messages.

    Raises:
        PlanError: there are none, the vocabulary does not have them, or there is text and no tokenizer.
    """
    if tokenizer is None and request.has_text:
        raise PlanError("the prompt is text: pass a tokenizer")
    ids: Sequence[int]
    if not isinstance(request.prompt, str) or tokenizer is None:
        ids = [int(token) for token in request.prompt]
    elif request.messages:
        ids = encode_messages(tokenizer, request.messages)
    else:
        ids = tokenizer(request.prompt)["input_ids"]
    if not len(ids):
        raise PlanError("the prompt has no tokens")
    if max(ids) >= vocab_size:
        raise PlanError(f"the prompt has token {max(ids)}, but the vocabulary ends at {vocab_size - 1}")
    return tuple(ids)


def pad_token(model: PreTrainedModel) -> int:
    """Return the token to pad with: the model's pad token, else its end token, else 0. Padding is masked."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(model.generation_config, name, None)
        token = token[0] if isinstance(token, (list, tuple)) and token else token
        if isinstance(token, int) and token >= 0:
            return token
    return 0


def keywords_of(
    request: GenerationRequest, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """Return the keywords for `generate()` except prompt and lengths; `pad_token_id` is always there."""
    keywords: dict[str, Any] = {"pad_token_id": pad_token(model), **request.generate_options()}
    if request.stop:
        keywords["tokenizer"] = tokenizer
    return keywords


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, both (rows, longest) int64, padded on the left with `pad`."""
    longest = max(len(row) for row in rows)
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def end_tokens(model: PreTrainedModel, request: GenerationRequest) -> frozenset[int]:
    """Return the tokens that end an answer: the request's own, else those of the model."""
    ids = request.options.get("eos_token_id")
    ids = getattr(model.generation_config, "eos_token_id", None) if ids is None else ids
    if ids is None:
        return frozenset()
    return frozenset(ids) if isinstance(ids, (list, tuple)) else frozenset([ids])


class AnswerReader:
    """Turns the new tokens of one row into the request's answer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Use the end tokens of the model's generation config. Without a tokenizer, answers have no text."""
        self._model = model
        self._tokenizer = tokenizer

    def read(
        self, tokenized: TokenizedRequest, new_tokens: Sequence[int], seed: int | None
    ) -> GenerationResult:
        """Return the answer in one row's new tokens: up to its end, and no longer than the request allows."""
        request, tokenizer = tokenized.request, self._tokenizer
        tokens, has_ended = self._cut(request, list(new_tokens)[: request.max_new_tokens])
        text = None if tokenizer is None else str(tokenizer.decode(tokens, skip_special_tokens=True))
        return GenerationResult(
            index=tokenized.index,
            request=request,
            prompt_tokens=len(tokenized.ids),
            tokens=tuple(tokens),
            text=text,
            finish_reason="stop" if has_ended else "length",
            seed=seed,
        )

    def _cut(self, request: GenerationRequest, tokens: list[int]) -> tuple[list[int], bool]:
        ends = end_tokens(self._model, request)
        for length, token in enumerate(tokens, start=1):
            if token in ends or (request.stop and self._has_stop_text(request.stop, tokens[:length])):
                return tokens[:length], True
        return tokens, False

    def _has_stop_text(self, stop: tuple[str, ...], tokens: list[int]) -> bool:
        assert self._tokenizer is not None
        text = self._tokenizer.decode(tokens)
        return any(stop_text in text for stop_text in stop)
