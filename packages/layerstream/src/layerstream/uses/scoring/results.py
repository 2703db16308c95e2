"""Scoring results: a score for each suffix, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SuffixScore:
    """The score of one suffix after its prefix.

    Attributes:
        sum: the sum of `token_logprobs`, in float64; with a head, the sum of `outputs`.
        mean: `sum` divided by the number of its terms.
        token_logprobs: (tokens,) float32, the natural logarithm of each suffix token's probability after all
            tokens before it; empty with a head.
        is_greedy: whether each token is the likeliest in its place; always False with a head.
        outputs: (outputs,) the head's outputs for the suffix's last token: float32, or float64 if the head
            computes in float64; empty without a head.
        prefix_tokens: the number of tokens of the prefix.
        suffix_tokens: the number of tokens of the suffix.
    """

    sum: float
    mean: float
    token_logprobs: np.ndarray
    is_greedy: bool
    outputs: np.ndarray
    prefix_tokens: int
    suffix_tokens: int

    @property
    def logprob(self) -> float | None:
        """The suffix's log-probability: the sum of `token_logprobs`, in float64; None with a head."""
        return self.sum if self.token_logprobs.size else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoringResult:
    """The scores of one prefix's suffixes.

    Attributes:
        index: the request's place among the requests.
        scores: one per suffix, in their order; empty after an error.
        error: why there are no scores; None if there are.
        is_shared: whether the suffixes read the keys and values of their prefix; False if each ran with a
            prefix of its own.
    """

    index: int
    scores: tuple[SuffixScore, ...] = ()
    error: Exception | None = None
    is_shared: bool = True

    @property
    def best(self) -> int | None:
        """The index of the suffix with the highest sum, the first one in a tie; None on error."""
        sums = [score.sum for score in self.scores]
        return sums.index(max(sums)) if sums else None

    @property
    def best_by_mean(self) -> int | None:
        """The index of the suffix with the highest mean, which does not favour short ones; None on error."""
        means = [score.mean for score in self.scores]
        return means.index(max(means)) if means else None
