"""What a service and a ticket offer to those who use them. No model and no thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ..batching.requests import GenerationRequest
from .events import AnswerEvent, ServiceStatus


class Ticket(Protocol):
    """One request in a service; safe to use from any thread."""

    @property
    def number(self) -> int:
        """Counts requests from 1."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt."""

    @property
    def position(self) -> int:
        """Its place in the queue, from 1; 0 once it runs or has ended."""

    @property
    def first_token_eta_s(self) -> float:
        """Estimated seconds until its first token; 0 once it has one."""

    @property
    def eta_s(self) -> float:
        """Estimated seconds until it ends if it takes all the tokens it may."""

    def cancel(self) -> None:
        """End it, if it has not begun; else let it leave the sweep at the next unit. Safe to call twice."""


class Service(Protocol):
    """Answers requests as they come.

    Attributes:
        model_name: the directory or Hub id of the model.
        tokenizer: the model's.
        context_tokens: the limit on the tokens of a prompt and its answer together.
    """

    model_name: str
    tokenizer: PreTrainedTokenizerBase
    context_tokens: int

    def submit(
        self,
        request: GenerationRequest,
        on_event: Callable[[AnswerEvent], object],
        *,
        top_logprobs: int | None = None,
        scores_prompt: bool = False,
    ) -> Ticket:
        """Put a request into the queue; returns at once.

        Args:
            request: the request; one sequence, no beams.
            on_event: called with each event in one of the service's own threads, or in the thread that
                cancels; must be quick and not raise. The last event is an `AnswerEnded`, always.
            top_logprobs: report the chance of each token, and of so many likeliest ones; None reports none.
            scores_prompt: report the chances of the prompt's tokens too, if any are reported.

        Raises:
            PlanError: the request is invalid, or can never fit; the message says what was found.
            QueueFullError: the queue is full.
            ServiceClosedError: the service is closed.
        """

    def status(self) -> ServiceStatus:
        """Return what it does now."""

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept nothing more, wait up to `drain_s` seconds for what runs and waits, and cancel the rest."""
