"""Scores as plain fields, for JSON and for tables."""

from __future__ import annotations

import math
from typing import Any

from .results import ScoringResult


def score_fields(result: ScoringResult) -> list[dict[str, Any]]:
    """Return the scores of a result: for each suffix its sum, its mean and its number of tokens.

    Without a head, its log-probability follows, whether it is greedy, and the log-probability of each token;
    with one, the head's outputs. The logarithm of 0 is None, since JSON cannot express it.
    """
    scores: list[dict[str, Any]] = []
    for score in result.scores:
        fields: dict[str, Any] = {
            "sum": _finite(score.sum),
            "mean": _finite(score.mean),
            "tokens": score.suffix_tokens,
        }
        if score.logprob is None:
            fields["outputs"] = score.outputs.tolist()
        else:
            fields |= {
                "logprob": _finite(score.logprob),
                "is_greedy": score.is_greedy,
                "token_logprobs": [_finite(value) for value in score.token_logprobs.tolist()],
            }
        scores.append(fields)
    return scores


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
