"""Accumulate how well two models' logits agree, position by position.

Nothing is clipped and no logits are kept, only a few floats per position for percentiles and margins. It
does not know models. Runs in the worker.
"""

from __future__ import annotations

import math

import torch

from ..measurement import Agreement

_ROWS = 8
"""Positions per step: float64 copies of more would cost more memory than they save time."""


class AgreementMeter:
    """Accumulates the agreement of a variant with the reference.

    Attributes:
        text: name of the text.
        margins: the reference's p1 - p2 at each position so far.
    """

    def __init__(self, text: str) -> None:
        """Start with no positions.

        Args:
            text: `answer` or `prose`.
        """
        self.text = text
        self.margins: list[float] = []
        self._kl: list[float] = []
        self._reverse_kl: list[float] = []
        self._matches = 0
        self._max_difference = 0.0
        self._log_probability_difference = 0.0
        self._is_bit_exact = True

    def feed(
        self, reference_logits: torch.Tensor, variant_logits: torch.Tensor, next_tokens: torch.Tensor
    ) -> None:
        """Add positions.

        Args:
            reference_logits: shape [positions, vocabulary], any floating dtype.
            variant_logits: the same shape.
            next_tokens: the text's next token at each position, int64, shape [positions].

        Raises:
            ValueError: the shapes do not match, or a model returned NaN.
        """
        if reference_logits.shape != variant_logits.shape or reference_logits.shape[:1] != next_tokens.shape:
            raise ValueError(
                f"shapes do not match: reference logits {tuple(reference_logits.shape)}, variant logits "
                f"{tuple(variant_logits.shape)}, next tokens {tuple(next_tokens.shape)}"
            )
        for whose, logits in (("reference", reference_logits), ("variant", variant_logits)):
            if bool(torch.isnan(logits).any()):
                raise ValueError(f"the {whose}'s logits contain NaN on the text {self.text!r}")
        self._is_bit_exact &= reference_logits.dtype == variant_logits.dtype and torch.equal(
            reference_logits, variant_logits
        )
        for start in range(0, next_tokens.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            self._feed_rows(reference_logits[rows], variant_logits[rows], next_tokens[rows])

    def _feed_rows(self, reference: torch.Tensor, variant: torch.Tensor, next_tokens: torch.Tensor) -> None:
        p_logits, q_logits = reference.double(), variant.double()
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        self._kl += divergences(log_p, log_q).tolist()
        self._reverse_kl += divergences(log_q, log_p).tolist()
        self._matches += int((reference.argmax(-1) == variant.argmax(-1)).sum())
        # equal infinities (tokens with probability 0 in both models) do not differ
        difference = torch.where(p_logits == q_logits, 0.0, (p_logits - q_logits).abs())
        self._max_difference = max(self._max_difference, float(difference.max()))
        chosen = next_tokens.to(log_p.device)[:, None]
        self._log_probability_difference += float((log_p.gather(-1, chosen) - log_q.gather(-1, chosen)).sum())
        top = log_p.topk(2, dim=-1).values.exp()
        self.margins += (top[:, 0] - top[:, 1]).tolist()

    def finish(self) -> Agreement:
        """Return the agreement over all positions.

        Raises:
            ValueError: there were no positions.
        """
        positions = len(self._kl)
        if not positions:
            raise ValueError(f"no position of the text {self.text!r} was compared")
        top1 = self._matches / positions
        kl, reverse = (torch.tensor(values, dtype=torch.float64) for values in (self._kl, self._reverse_kl))
        return Agreement(
            text=self.text,
            positions=positions,
            kl_mean=float(kl.mean()),
            kl_p99=float(kl.quantile(0.99)),
            kl_max=float(kl.max()),
            reverse_kl_mean=float(reverse.mean()),
            reverse_kl_p99=float(reverse.quantile(0.99)),
            reverse_kl_max=float(reverse.max()),
            top1=top1,
            top1_standard_error=math.sqrt(top1 * (1 - top1) / positions),
            max_logit_difference=self._max_difference,
            perplexity_ratio=_exp(self._log_probability_difference / positions),
            is_bit_exact=self._is_bit_exact,
        )


def divergences(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of each row in nats: the sum of p (log p - log q) over the last dimension.

    It is infinite where q gives probability 0 to a token that p does not.

    Args:
        log_p: log-probabilities, float64, shape [positions, vocabulary].
        log_q: the same shape.
    """
    terms = log_p.exp() * (log_p - log_q)
    # a token with p = 0 contributes nothing, regardless of q
    return torch.where(log_p == -math.inf, 0.0, terms).sum(-1)


def _exp(value: float) -> float:
    # math.exp raises OverflowError beyond a double's range
    return math.exp(value) if value < 700 else math.inf
