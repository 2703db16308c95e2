"""One request in a service: where it stands, what it has told its listener, and what its caller holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from ...planning.admission import RequestBytes
from ..batching.packing import TokenizedRequest
from ..batching.requests import GenerationResult
from .answer_text import AnswerText
from .events import AnswerEnded, AnswerEvent, AnswerPart, AnswerStarted, PromptScored, TokenChance

if TYPE_CHECKING:
    from .service import GenerationService


class Stage(Enum):
    """How far a request has come."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Outcome(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A request with its state. The service's lock guards `stage`; the rest belongs to the service's threads.

    Attributes:
        number: counts requests from 1.
        tokenized: the request and its prompt's tokens.
        size: the memory that it takes.
        seed: what it samples with; None if it does not.
        top_logprobs: how many likeliest tokens to report at each place; None reports no chances.
        scores_prompt: the chances of the prompt's tokens are reported too.
        on_event: hears what happens.
        stage: how far it has come.
        is_cancelled: set when nobody waits for it any longer.
        tokens: its answer so far.
        reused_tokens: tokens of its prompt that are not computed again.
    """

    number: int
    tokenized: TokenizedRequest
    size: RequestBytes
    seed: int | None
    top_logprobs: int | None
    scores_prompt: bool
    on_event: Callable[[AnswerEvent], object]
    tokenizer: PreTrainedTokenizerBase
    stage: Stage = Stage.WAITING
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    tokens: list[int] = field(default_factory=list)
    reused_tokens: int = 0
    _text: AnswerText = field(init=False)

    def __post_init__(self) -> None:
        """Begin the answer's text."""
        self._text = AnswerText(self.tokenizer, self.tokenized.request.stop)

    @property
    def most_left(self) -> int:
        """How many tokens it may still generate."""
        return max(0, self.tokenized.request.max_new_tokens - len(self.tokens))

    def start(self) -> None:
        """Tell that it was admitted."""
        self.on_event(AnswerStarted())

    def tell_prompt(self, chances: Sequence[TokenChance]) -> None:
        """Tell the chances of the prompt's tokens."""
        self.on_event(PromptScored(chances=tuple(chances)))

    def add(self, tokens: Sequence[int], chances: Sequence[TokenChance]) -> None:
        """Tell its next tokens."""
        self.tokens += tokens
        self.on_event(AnswerPart(text=self._text.add(tokens), tokens=tuple(tokens), chances=tuple(chances)))

    def outcome(self, error: Exception | None) -> Outcome:
        """Return how it ends now, with this error."""
        if error is not None:
            return Outcome.FAILED
        return Outcome.CANCELLED if self.is_cancelled.is_set() else Outcome.ANSWERED

    def end(self, error: Exception | None, end_tokens: frozenset[int]) -> None:
        """Tell how it ended."""
        if error is None and (rest := self._text.finish()):
            self.on_event(AnswerPart(text=rest, tokens=()))
        is_cancelled = self.outcome(error) is Outcome.CANCELLED
        has_stopped = self._text.is_stopped or bool(self.tokens and self.tokens[-1] in end_tokens)
        result = GenerationResult(
            index=self.tokenized.index,
            request=self.tokenized.request,
            prompt_tokens=len(self.tokenized.ids),
            tokens=tuple(self.tokens),
            text=self._text.text,
            finish_reason="error" if error or is_cancelled else "stop" if has_stopped else "length",
            seed=self.seed,
            error=error,
        )
        self.on_event(AnswerEnded(result=result, is_cancelled=is_cancelled, reused_tokens=self.reused_tokens))


@dataclass(frozen=True, slots=True)
class ServiceTicket:
    """One request in a service; see `protocol.Ticket`."""

    _service: GenerationService
    _entry: Entry

    @property
    def number(self) -> int:
        """Counts requests from 1."""
        return self._entry.number

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt."""
        return len(self._entry.tokenized.ids)

    @property
    def position(self) -> int:
        """Its place in the queue, from 1; 0 once it runs or has ended."""
        return self._service.position(self._entry)

    @property
    def first_token_eta_s(self) -> float:
        """Estimated seconds until its first token; 0 once it has one."""
        return self._service.first_token_eta_s(self._entry)

    @property
    def eta_s(self) -> float:
        """Estimated seconds until it ends if it takes all the tokens it may."""
        return self._service.eta_s(self._entry)

    def cancel(self) -> None:
        """End it, if it has not begun; else let it leave the sweep at the next unit. Safe to call twice."""
        self._service.cancel(self._entry)
