"""What is asked of the model: the forwards of one request, and the scores that come of them.

Layer: uses. Each forward is a task of its own, of the shape (1, tokens) that the plain computation in two steps has. Knows logits,
hidden states and caches; does not know who else tasks.

    shared     prefix -> its cache                               once; its last row gives each suffix' first token
               suffix k (without its last token) on that cache   gives the later ones; none where a suffix is one token
    a head     prefix -> its cache; suffix k on that cache, whole; the head on its last row
    whole      prefix and suffix k as one                        where a cache cannot be shared
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
_NONE = np.empty(0, dtype=np.float32)


class Scorer(Protocol):
    """One way to score: what it computes for a request, and how large that is."""

    def size(self, request: TokenizedScoring) -> ScoringSize:
        """Return the request as lengths of its forwards, in boarding order."""

    def calls(self, request: TokenizedScoring) -> list[Call]:
        """Return its forwards, in boarding order."""

    def read(self, request: TokenizedScoring, values: Sequence[Any]) -> tuple[SuffixScore, ...]:
        """Return the scores of its suffixes from what the forwards returned.

        Raises:
            ScoreError: one of them is not a number.
        """


@dataclass(frozen=True, slots=True)
class TokenValues:
    """Log-probabilities of some tokens in a row, (tokens,) float32, and whether each was the likeliest in its place."""

    logprobs: np.ndarray
    are_greedy: np.ndarray


def token_values(logits: torch.Tensor, targets: Sequence[int]) -> TokenValues:
    """Return what `logits` say of `targets`.

    Args:
        logits: (rows, vocabulary), each row for the target in its place.
        targets: (rows,) token ids.

    Returns:
        The logarithm of the softmax, computed in fp32, at the targets.
    """
    wanted = torch.tensor(targets, device=logits.device)
    values = [
        piece.float().log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
        for piece, ids in zip(logits.split(SOFTMAX_ROWS), wanted.split(SOFTMAX_ROWS), strict=True)
    ]
    return TokenValues(torch.cat(values).cpu().numpy(), (logits.argmax(dim=-1) == wanted).cpu().numpy())


class LogProbabilities:
    """Scores suffixes by the log-probabilities of their tokens."""

    def __init__(self, model: PreTrainedModel, last_positions: LastPositions, *, is_shared: bool) -> None:
        """Score with the model's own head."""
        self._model, self._last_positions, self._is_shared = model, last_positions, is_shared
        self._keeps_rows = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    def size(self, request: TokenizedScoring) -> ScoringSize:
        """Return the request as lengths of its forwards, in boarding order."""
        prefix, lengths = len(request.prefix), [len(suffix) for suffix in request.suffixes]
        if not self._is_shared:
            whole = tuple(prefix + length - 1 for length in lengths)
            return ScoringSize(forwards=whole, context=whole, logit_rows=tuple(lengths), is_shared=False)
        later = tuple(length - 1 for length in lengths if length > 1)
        context = (prefix, *(prefix + length for length in later))
        return ScoringSize(forwards=(prefix, *later), context=context, logit_rows=(1, *later))

    def calls(self, request: TokenizedScoring) -> list[Call]:
        """Return its forwards, in boarding order."""
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
        """Return the scores of its suffixes from what the forwards returned."""
        if not self._is_shared:
            return tuple(_as_score(request, place, [part]) for place, part in enumerate(values))
        first, later = values[0], iter(values[1:])
        parts = [
            [one, next(later)] if len(suffix) > 1 else [one]
            for one, suffix in zip(first, request.suffixes, strict=True)
        ]
        return tuple(_as_score(request, place, each) for place, each in enumerate(parts))


class HeadOutputs:
    """Scores suffixes by a custom head on the last hidden state of their last token."""

    def __init__(
        self, model: PreTrainedModel, last_positions: LastPositions, head: ScoringHead, *, is_shared: bool
    ) -> None:
        """Score with `head`; the language model's own is never visited."""
        self._model, self._last_positions, self._head, self._is_shared = (
            model,
            last_positions,
            head,
            is_shared,
        )

    def size(self, request: TokenizedScoring) -> ScoringSize:
        """Return the request as lengths of its forwards, in boarding order."""
        prefix, lengths = len(request.prefix), [len(suffix) for suffix in request.suffixes]
        whole = tuple(prefix + length for length in lengths)
        nothing = (0,) * len(lengths)
        if not self._is_shared:
            return ScoringSize(forwards=whole, context=whole, logit_rows=nothing, is_shared=False)
        return ScoringSize(forwards=(prefix, *lengths), context=(prefix, *whole), logit_rows=(0, *nothing))

    def calls(self, request: TokenizedScoring) -> list[Call]:
        """Return its forwards, in boarding order."""
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
        made = self._head(hidden[:, -1])[0]
        values: np.ndarray = (made if made.dtype is torch.float64 else made.float()).cpu().numpy()
        return values

    def read(self, request: TokenizedScoring, values: Sequence[Any]) -> tuple[SuffixScore, ...]:
        """Return the scores of its suffixes from what the forwards returned."""
        outputs = values[1:] if self._is_shared else values
        return tuple(_as_head_score(request, place, each) for place, each in enumerate(outputs))


def _inputs(model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=model.device)}
    if cache is None:
        return inputs | {"use_cache": False}
    return inputs | {"use_cache": True} | compat.cache_argument(model, cache)


def _as_score(request: TokenizedScoring, place: int, parts: Sequence[TokenValues]) -> SuffixScore:
    logprobs = np.concatenate([part.logprobs for part in parts])
    is_greedy = all(bool(part.are_greedy.all()) for part in parts)
    if np.isnan(logprobs).any():
        raise ScoreError(
            f"suffix {place} has log-probabilities that are not numbers: the model's logits are not finite there"
        )
    return _score(request, place, values=logprobs, token_logprobs=logprobs, is_greedy=is_greedy)


def _as_head_score(request: TokenizedScoring, place: int, outputs: np.ndarray) -> SuffixScore:
    if not np.isfinite(outputs).all():
        raise ScoreError(f"the head's outputs for suffix {place} are not finite: {outputs.tolist()}")
    return _score(request, place, values=outputs, outputs=outputs)


def _score(
    request: TokenizedScoring,
    place: int,
    *,
    values: np.ndarray,
    token_logprobs: np.ndarray = _NONE,
    outputs: np.ndarray = _NONE,
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
        suffix_tokens=len(request.suffixes[place]),
    )
