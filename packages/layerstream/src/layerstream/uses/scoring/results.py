"""What comes back: a score for every suffix, in numpy.

Layer: uses. Frozen values; knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SuffixScore:
    """The score of one suffix after its prefix.

    Attributes:
        sum: of `token_logprobs`, added up in float64; with a head, of `outputs`.
        mean: the same divided by their number.
        token_logprobs: (tokens,) float32, natural logarithm of the probability of each of the suffix' tokens after all before it;
            empty with a head.
        is_greedy: each token is the likeliest one in its place; always False with a head.
        outputs: (outputs,) what the head made of the suffix' last token: float32, or float64 where the head computes in that;
            empty without a head.
        prefix_tokens: of the prefix.
        suffix_tokens: of the suffix.
    """

    sum: float
    mean: float
    token_logprobs: np.ndarray
    is_greedy: bool
    outputs: np.ndarray
    prefix_tokens: int
    suffix_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoringResult:
    """The scores of one prefix' suffixes.

    Attributes:
        index: the request's place among those given.
        scores: one a suffix, in their order; empty after an error.
        error: why there are no scores; None when there are.
        is_shared: the suffixes read the keys and values of their prefix; False where each went with a prefix of its own.
    """

    index: int
    scores: tuple[SuffixScore, ...] = ()
    error: Exception | None = None
    is_shared: bool = True

    @property
    def best(self) -> int | None:
        """The place of the suffix with the highest sum, the first of equals; None after an error."""
        sums = [score.sum for score in self.scores]
        return sums.index(max(sums)) if sums else None

    @property
    def best_by_mean(self) -> int | None:
        """The place of the suffix with the highest mean, which does not prefer short ones; None after an error."""
        means = [score.mean for score in self.scores]
        return means.index(max(means)) if means else None
