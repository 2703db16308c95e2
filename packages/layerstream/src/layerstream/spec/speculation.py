"""What drafts take, what a plan expects of them, and what they did. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .serialize import JsonValue
from .sizes import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftNeeds:
    """What a draft takes on the device of its target.

    Attributes:
        name: what drafts: `"lookup"`, `"int8"`, `"nf4"`, a path or a Hub id.
        num_bytes: its weights, cache and activations.
        token_bytes: the bytes of memory that drafting one token reads.
        acceptance: the chance that a drafted token is accepted if those before it were, as assumed.
        tokens: how many tokens it is told to draft for each sweep; None leaves that open.
        refusal: why nothing is drafted for this target; empty if something is.
    """

    name: str
    num_bytes: int = 0
    token_bytes: int = 0
    acceptance: float = 0.0
    tokens: int | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftForecast:
    """What a plan expects of its draft.

    Attributes:
        acceptance: the chance that a drafted token is accepted if those before it were; an assumption.
        drafted: drafted tokens per sweep.
        tokens_per_sweep: tokens that the text grows by in each sweep.
        token_s: seconds per token with the draft.
        plain_token_s: seconds per token without it.
    """

    acceptance: float
    drafted: int
    tokens_per_sweep: float
    token_s: float
    plain_token_s: float

    def explain(self) -> str:
        """Return the figures as one line for people."""
        return (
            f"about {self.tokens_per_sweep:.1f} tokens per sweep with {self.drafted} drafted, if each is "
            f"accepted with a chance of {self.acceptance:.0%}: "
            f"{format_seconds(self.token_s)} per token, {format_seconds(self.plain_token_s)} without"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTokens:
    """What one sweep verified.

    Attributes:
        drafted: drafted tokens that it verified.
        accepted: how many of them, in a row, were accepted.
        tokens: tokens that the text grew by.
        ahead: how many of the drafted tokens were drafted while the sweep before ran.
    """

    drafted: int
    accepted: int
    tokens: int
    ahead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationReport(JsonValue):
    """The work of a draft since its model was loaded, or since `reset_report()`.

    Prompts are not counted: their sweeps verify nothing. A sweep shared by several requests counts once for
    each.

    Attributes:
        draft: what drafts: `"lookup"`, `"int8"`, `"nf4"`, a path or a Hub id.
        tokens: tokens generated after the prompts' sweeps.
        sweeps: sweeps that verified drafted tokens or computed a single one.
        verified: drafted tokens that sweeps verified.
        drafted: for each position among a sweep's drafted tokens, the first one first: how often there was a
            token and all before it were accepted.
        accepted: for each position, how often that token, or one of several there, was accepted.
        draft_s: seconds of drafting between sweeps.
        ahead: how many of the verified tokens were drafted while the sweep before ran; `draft_s` does not
            count them.
    """

    DERIVED_KEYS: ClassVar = ("tokens_per_sweep", "sweeps_saved", "acceptance")

    draft: str
    tokens: int
    sweeps: int
    verified: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    draft_s: float
    ahead: int = 0

    @property
    def tokens_per_sweep(self) -> float:
        """Tokens generated per sweep after the prompts'; 1 without a draft, 0 before the first sweep."""
        return self.tokens / self.sweeps if self.sweeps else 0.0

    @property
    def sweeps_saved(self) -> int:
        """How many more sweeps the same tokens would have taken without a draft."""
        return self.tokens - self.sweeps

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is accepted if those before it were; 0 if there were none."""
        judged = sum(self.drafted)
        return sum(self.accepted) / judged if judged else 0.0

    def explain(self) -> str:
        """Return the figures as one line for people."""
        ahead = "1 token was" if self.ahead == 1 else f"{self.ahead} tokens were"
        return (
            f"{self.draft}: {self.tokens_per_sweep:.1f} tokens per sweep "
            f"({self.tokens} in {self.sweeps}), "
            f"{sum(self.accepted)} of {self.verified} drafted tokens accepted, "
            f"drafting took {format_seconds(self.draft_s)}"
            + (f", and {ahead} drafted during sweeps" if self.ahead else "")
        )
