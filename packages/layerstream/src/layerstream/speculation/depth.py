"""How many tokens to draft for the next sweep: from measured seconds and measured acceptance. No torch.

A sweep takes as long for one token as for many, until the computation takes longer than the reading. So the
best depth weighs the seconds of drafting and verifying one more token against the chance that it is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..planning.drafting import MOST_DRAFTED, expected_tokens

_FORGETTING = 0.95
"""Older sweeps count less: the weight of a sweep falls by this factor with each later one."""

_FORGETTING_SECONDS = 0.8
"""The same for seconds: a disk may become slower or faster from one moment to the next."""

_FIRST_TOKENS = (8, 16, 4)
"""Drafted tokens in the first sweeps, which show how many seconds a verified token takes."""

_RETRY_SWEEPS = 32
"""While drafting does not pay, it is tried again once in this many sweeps."""

_SPREAD = 1.0
"""How much the numbers of tokens must vary (variance) before readings show what one more token takes."""

_ASSUMED_ACCEPTANCE = 0.8
_ASSUMED_TOKENS = 4.0
"""The assumption weighs as much as this many verified tokens."""


@dataclass(slots=True)
class _Line:
    """A straight line of seconds over tokens, fitted to readings; older readings weigh less."""

    weight: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    slope: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Note a reading."""
        for name, value in (
            ("weight", 1.0),
            ("tokens", tokens),
            ("seconds", seconds),
            ("squares", tokens * tokens),
            ("products", tokens * seconds),
        ):
            setattr(self, name, _FORGETTING_SECONDS * getattr(self, name) + value)

    def at(self, tokens: int) -> float:
        """Return the seconds for this many tokens: more tokens never take less, and none take less than 0."""
        if not self.weight:
            return 0.0
        mean_tokens, mean_s = self.tokens / self.weight, self.seconds / self.weight
        spread = self.squares / self.weight - mean_tokens**2
        if spread >= _SPREAD:  # else the slope is that of earlier readings
            self.slope = max(0.0, (self.products / self.weight - mean_tokens * mean_s) / spread)
        return max(0.0, mean_s + self.slope * (tokens - mean_tokens))


@dataclass(slots=True, kw_only=True)
class DepthControl:
    """Chooses how many tokens to draft for the next sweep.

    Attributes:
        most_tokens: never more than this.
        fixed_tokens: always this many, as far as there is room; None adapts.
    """

    most_tokens: int = MOST_DRAFTED
    fixed_tokens: int | None = None
    _accepted: float = _ASSUMED_ACCEPTANCE * _ASSUMED_TOKENS
    _judged: float = _ASSUMED_TOKENS
    _verified: float = 0.0
    _drafted: float = 0.0
    _in_row: float = 0.0
    _draft_s: float = 0.0
    _num_sweeps: int = 0
    _sweep: _Line = field(default_factory=_Line)

    def record(
        self,
        *,
        tokens: int,
        depth: int,
        judged: int,
        accepted: int,
        draft_s: float,
        sweep_s: float,
        ready: int = 0,
    ) -> None:
        """Note what one sweep gave.

        Args:
            tokens: drafted tokens that it verified.
            depth: how many of them are on the longest path.
            judged: at how many places in a row the target's choice could be compared with a drafted token.
            accepted: at how many of them it was one.
            draft_s: seconds of drafting them.
            sweep_s: seconds of the sweep.
            ready: how many of the tokens were drafted during the sweep before.
        """
        self._num_sweeps += 1
        if tokens:
            self._accepted = _FORGETTING * self._accepted + accepted
            self._judged = _FORGETTING * self._judged + judged
            self._verified = _FORGETTING_SECONDS * self._verified + tokens
            self._in_row = _FORGETTING_SECONDS * self._in_row + depth
        if tokens > ready:
            self._drafted = _FORGETTING_SECONDS * self._drafted + tokens - ready
            self._draft_s = _FORGETTING_SECONDS * self._draft_s + draft_s
        self._sweep.add(tokens, sweep_s)

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is accepted if those before it were."""
        return min(0.999, self._accepted / self._judged)

    def choose(self, most_tokens: int, *, ready: int = 0) -> int:
        """Return how many tokens to verify, at most `most_tokens`.

        Args:
            most_tokens: how many the text can still use.
            ready: how many of them are drafted already.
        """
        most = min(self.most_tokens, most_tokens)
        if most <= 0:
            return 0
        if self.fixed_tokens is not None:
            return min(self.fixed_tokens, most)
        if self._num_sweeps < len(_FIRST_TOKENS):
            return min(_FIRST_TOKENS[self._num_sweeps], most)
        best = max(range(most + 1), key=lambda tokens: self._tokens_per_s(tokens, ready))
        if not best and self._num_sweeps % _RETRY_SWEEPS == 0:
            return min(_FIRST_TOKENS[-1], most)
        return best

    def _tokens_per_s(self, tokens: int, ready: int) -> float:
        draft_s, depth = 0.0, tokens
        if self._drafted:
            draft_s = max(0, tokens - ready) * self._draft_s / self._drafted
        if self._verified:
            depth = round(tokens * self._in_row / self._verified)  # a tree is less deep than it is large
        seconds = self._sweep.at(tokens) + draft_s
        return expected_tokens(self.acceptance, depth) / seconds if seconds > 0 else float(tokens)
