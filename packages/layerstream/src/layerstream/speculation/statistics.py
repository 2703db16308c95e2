"""Count what speculation does; several sequences may count into one."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..spec.speculation import SpeculationReport, VerifiedTokens


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Sums since loading or the last reset.

    Attributes:
        draft: what drafts.
        tokens, sweeps, verified, ahead, draft_s: as in the report.
        drafted, accepted: by position, as in the report.
    """

    draft: str
    tokens: int = 0
    sweeps: int = 0
    verified: int = 0
    ahead: int = 0
    draft_s: float = 0.0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def count(self, verified: VerifiedTokens, *, judged: int, draft_s: float) -> None:
        """Note one sweep: what it verified, and at how many places in a row a token was drafted."""
        self.sweeps += 1
        self.tokens += verified.tokens
        self.verified += verified.drafted
        self.ahead += verified.ahead
        self.draft_s += draft_s
        missing = judged - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for position in range(judged):
            self.drafted[position] += 1
            self.accepted[position] += position < verified.accepted

    def report(self) -> SpeculationReport:
        """Return the sums as a value."""
        return SpeculationReport(
            draft=self.draft,
            tokens=self.tokens,
            sweeps=self.sweeps,
            verified=self.verified,
            ahead=self.ahead,
            drafted=tuple(self.drafted),
            accepted=tuple(self.accepted),
            draft_s=self.draft_s,
        )
