"""How sure a draft can be of the target's next token: learned from how often it was right. No torch.

A draft's probabilities say how a text may go on, not which token the target chooses. A copy with 8 bits
nearly always agrees with its target, even where several tokens are about as good. So its scores are divided
by a temperature first, as in temperature scaling: the one under which the choices seen so far were likeliest.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

_TEMPERATURES = (1.0, 0.5, 0.25, 0.125, 0.0625)
FIRST_TEMPERATURE = 0.25
"""What is assumed of a draft that is not the target's own copy."""


class Confidence:
    """Turns a draft's scores into chances that the target chooses each token."""

    def __init__(self, first: float = FIRST_TEMPERATURE) -> None:
        """Start with a temperature; the others are powers of a half, from 1 on."""
        # the first one is a little ahead, so that it is kept until something speaks against it
        self._losses = {each: 0.0 if each == first else 1e-9 for each in _TEMPERATURES}

    @property
    def temperature(self) -> float:
        """What the scores are divided by."""
        return min(self._losses, key=self._losses.__getitem__)

    def learn(self, scores: Sequence[float], chosen: int) -> None:
        """Note that the target chose the token at this place in a list of scores."""
        for temperature in _TEMPERATURES:
            self._losses[temperature] -= _log_softmax(scores, temperature)[chosen]

    def log_chances(self, scores: Sequence[float]) -> list[float]:
        """Return for each token the logarithm of the chance that the target chooses it.

        Args:
            scores: the largest ones; there may be none.
        """
        return _log_softmax(scores, self.temperature)


def _log_softmax(scores: Sequence[float], temperature: float) -> list[float]:
    highest = max(scores, default=0.0)
    scaled = [(score - highest) / temperature for score in scores]
    total = log(sum(map(exp, scaled)) or 1.0)
    return [each - total for each in scaled]
