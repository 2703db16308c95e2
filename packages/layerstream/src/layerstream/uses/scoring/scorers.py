"""The forwards that a scoring request takes, and the scores that follow from them.

Each forward is a task of its own, with the same shape (1, tokens) as in the plain computation in two steps.

    shared   the prefix, on an empty cache                    once; its last row gives each first token
             suffix k without its last token, on that cache   gives the later tokens; skipped for one token
    head     the prefix; then all of suffix k, on its cache   the head takes the last row
    whole    prefix and suffix k as one text                  if the model's cache cannot be shared
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from ...architecture import compat
from ...architecture.last_positions import LastPositions, backbone
from ...architecture.shared_prefix import SharedPrefix
from ...errors import ScoreError
from ...planning.scoring_sweeps import SOFTMAX_ROWS, ScoringSize
from .head import ScoringHead
from .requests import TokenizedScoring
from .results import SuffixScore

Call = Callable[[], Any]
_EMPTY = np.empty(0, dtype=np.float32)


class Scorer(Protocol):
    """One way to score: the forwards of a request, their sizes, and the scores that they give."""

    def size(self, request: TokenizedScoring) -> ScoringSize:
        """Return the lengths of the request's forwards, in order of admission."""

    def calls(self, request: TokenizedScoring) -> list[Call]:
        """Return the request's forwards, in order of admission."""

    def read(self, request: TokenizedScoring, values: Sequence[Any]) -> tuple[SuffixScore, ...]:
        """Return the scores of the request's suffixes, from the values that its forwards returned.

        Raises:
            ScoreError: a value is not a finite number.
        """


@dataclass(frozen=True, slots=True)
class TokenValues:
    """The log-probabilities of consecutive tokens.

    Attributes:
        logprobs: (tokens,) float32.
        are_greedy: (tokens,) bool, whether each token is the likeliest in its place.
    """

    logprobs: np.ndarray
    are_greedy: np.ndarray


def token_values(logits: torch.Tensor, targets: Sequence[int]) -> TokenValues:
    """Return the log-probabilities of `targets`: the log-softmax of `logits`, computed in fp32.

    Args:
        logits: (rows, vocabulary), one row per target.
        targets: (rows,) token ids.
    """
    ids = torch.tensor(targets, device=logits.device)
    values = [
        rows.float().log_softmax(dim=-1).gather(1, targets_of_rows[:, None])[:, 0]
        for rows, targets_of_rows in zip(logits.split(SOFTMAX_ROWS), ids.split(SOFTMAX_ROWS), strict=True)
    ]
    return TokenValues(torch.cat(values).cpu().numpy(), (logits.argmax(dim=-1) == ids).cpu().numpy())


class LogProbabilities:
    """Scores suffixes by the log-probabilities of their tokens."""

    def __init__(self, model: PreTrainedModel, last_positions: LastPositions, *, is_shared: bool) -> None:
        """Score with the model's own head."""
        self._model, self._last_positions, self._is_shared = model, last_positions, is_shared
        self._keeps_rows = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    def size(self, request: TokenizedScoring) -> ScoringSize:
        """Return the lengths of the request's forwards, in order of admission."""
        prefix, lengths = len(request.prefix), [len(suffix) for suffix in request.suffixes]
        if not self._is_shared:
            whole = tuple(prefix + length - 1 for length in lengths)
            return ScoringSize(forwards=whole, context=whole, logit_rows=tuple(lengths), is_shared=False)
        later = tuple(length - 1 for length in lengths if length > 1)
        context = (prefix, *(prefix + length for length in later))
        return ScoringSize(forwards=(prefix, *later), context=context, logit_rows=(1, *later))

    def calls(self, request: TokenizedScoring) -> list[Call]:
        """Return the request's forwards, in order of admission."""
        if not self._is_shared:
            return [partial(self._score_whole, request.prefix, suffix) for suffix in request.suffixes]
        longer = [suffix for suffix in request.suffixes if len(suffix) > 1]
        shared = SharedPrefix(self._model, len(request.prefix), len(longer))
        first = partial(self._score_first, request, shared.cache)
        return [first, *(partial(self._score_later, suffix, shared.reader()) for suffix in longer)]

    def _score_first(self, request: TokenizedScoring, cache: DynamicCache) -> list[TokenValues]:
        logits = self._logits(request.prefix, 1, cache)
        return [token_values(logits, suffix[:1]) for suffix in request.suffixes]

    def _score_later(self, suffix: tuple[int, ...], cache: DynamicCache) -> TokenValues:
        return token_values(self._logits(suffix[:-1], len(suffix) - 1, cache), suffix[1:])

    def _score_whole(self, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> TokenValues:
        return token_values(self._logits((*prefix, *suffix[:-1]), len(suffix), None), suffix)

    def _logits(self, ids: Sequence[int], rows: int, cache: DynamicCache | None) -> torch.Tensor:
        """Return the logits of the last `rows` positions: (rows, vocabulary)."""
        keep = {"logits_to_keep": rows} if self._keeps_rows else {}
        with self._last_positions.last_rows(rows):
            logits: torch.Tensor = self._model(**_inputs(self._model, ids, cache), **keep).logits[0, -rows:]
        return logits

    def read(self, request: TokenizedScoring, values: Sequence[Any]) -> tuple[SuffixScore, ...]:
        """Return the scores of the request's suffixes, from the values that its forwards returned."""
        if not self._is_shared:
            return tuple(_as_score(request, number, [value]) for number, value in enumerate(values))
        first_tokens, later_tokens = values[0], iter(values[1:])
        parts = [
            [first, next(later_tokens)] if len(suffix) > 1 else [first]
            for first, suffix in zip(first_tokens, request.suffixes, strict=True)
        ]
        return tuple(_as_score(request, number, part) for number, part in enumerate(parts))


class HeadOutputs:
    """Scores suffixes by a custom head on the last hidden state of their last token."""

    def __init__(
        self, model: PreTrainedModel, last_positions: LastPositions, head: ScoringHead, *, is_shared: bool
    ) -> None:
        """Score with `head`; the model's own head does not run."""
        self._model, self._last_positions = model, last_positions
        self._head, self._is_shared = head, is_shared

    def size(self, request: TokenizedScoring) -> ScoringSize:
        """Return the lengths of the request's forwards, in order of admission."""
        prefix, lengths = len(request.prefix), [len(suffix) for suffix in request.suffixes]
        whole = tuple(prefix + length for length in lengths)
        nothing = (0,) * len(lengths)
        if not self._is_shared:
            return ScoringSize(forwards=whole, context=whole, logit_rows=nothing, is_shared=False)
        return ScoringSize(forwards=(prefix, *lengths), context=(prefix, *whole), logit_rows=(0, *nothing))

    def calls(self, request: TokenizedScoring) -> list[Call]:
        """Return the request's forwards, in order of admission."""
        if not self._is_shared:
            return [partial(self._outputs, (*request.prefix, *suffix), None) for suffix in request.suffixes]
        shared = SharedPrefix(self._model, len(request.prefix), len(request.suffixes))
        first = partial(self._fill, request.prefix, shared.cache)
        return [first, *(partial(self._outputs, suffix, shared.reader()) for suffix in request.suffixes)]

    def _fill(self, ids: Sequence[int], cache: DynamicCache) -> None:
        with self._last_positions.last_rows(0):
            backbone(self._model)(**_inputs(self._model, ids, cache))

    def _outputs(self, ids: Sequence[int], cache: DynamicCache | None) -> np.ndarray:
        with self._last_positions.last_rows(1):
            hidden: torch.Tensor = backbone(self._model)(**_inputs(self._model, ids, cache)).last_hidden_state
        outputs = self._head(hidden[:, -1])[0]
        values: np.ndarray = (outputs if outputs.dtype is torch.float64 else outputs.float()).cpu().numpy()
        return values

    def read(self, request: TokenizedScoring, values: Sequence[Any]) -> tuple[SuffixScore, ...]:
        """Return the scores of the request's suffixes, from the values that its forwards returned."""
        outputs = values[1:] if self._is_shared else values
        return tuple(_as_head_score(request, number, row) for number, row in enumerate(outputs))


def _inputs(model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=model.device)}
    if cache is None:
        return inputs | {"use_cache": False}
    return inputs | {"use_cache": True} | compat.cache_argument(model, cache)


def _as_score(request: TokenizedScoring, number: int, parts: Sequence[TokenValues]) -> SuffixScore:
    logprobs = np.concatenate([part.logprobs for part in parts])
    is_greedy = all(bool(part.are_greedy.all()) for part in parts)
    if np.isnan(logprobs).any():
        raise ScoreError(
            f"the log-probabilities of suffix {number} are not numbers: the model's logits are not finite"
        )
    return _score(request, number, values=logprobs, token_logprobs=logprobs, is_greedy=is_greedy)


def _as_head_score(request: TokenizedScoring, number: int, outputs: np.ndarray) -> SuffixScore:
    if not np.isfinite(outputs).all():
        raise ScoreError(f"the head's outputs for suffix {number} are not finite: {outputs.tolist()}")
    return _score(request, number, values=outputs, outputs=outputs)


def _score(
    request: TokenizedScoring,
    number: int,
    *,
    values: np.ndarray,
    token_logprobs: np.ndarray = _EMPTY,
    outputs: np.ndarray = _EMPTY,
    is_greedy: bool = False,
) -> SuffixScore:
    total = float(values.sum(dtype=np.float64))
    return SuffixScore(
        sum=total,
        mean=total / len(values),
        token_logprobs=token_logprobs,
        is_greedy=is_greedy,
        outputs=outputs,
        prefix_tokens=len(request.prefix),
        suffix_tokens=len(request.suffixes[number]),
    )
