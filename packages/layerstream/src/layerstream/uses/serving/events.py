"""What a service tells about one request, and about itself. Frozen values; no model and no thread."""

from __future__ import annotations

from dataclasses import dataclass

from ..batching.requests import GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChance:
    """A token of an answer and how likely the model found it.

    Attributes:
        token: its id.
        logprob: the natural logarithm of its probability, before temperature and top-p.
        top: the likeliest tokens at this place with theirs, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStarted:
    """The request was admitted: it joins the sweep at the next first block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScored:
    """How likely the model found the tokens of the prompt; it comes before the first part of the answer.

    Attributes:
        chances: one entry for each token after the first, before which there is nothing.
    """

    chances: tuple[TokenChance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPart:
    """The next part of an answer.

    Attributes:
        text: the new text; it may be empty while a character or a stop text is incomplete.
        tokens: the new tokens.
        chances: one entry for each of `tokens` if they were asked for, else none.
    """

    text: str
    tokens: tuple[int, ...]
    chances: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEnded:
    """The last event of a request.

    Attributes:
        result: the whole answer, or its error. Its text leaves out the stop text that ended it.
        is_cancelled: the request was cancelled; then the result holds what there was until then.
        reused_tokens: tokens of its prompt that were not computed again; see `PrefixCache`.
    """

    result: GenerationResult
    is_cancelled: bool = False
    reused_tokens: int = 0


AnswerEvent = AnswerStarted | PromptScored | AnswerPart | AnswerEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """A service at one moment.

    Attributes:
        running: requests that share the sweeps now.
        waiting: requests in the queue.
        most_waiting: how many the queue can hold.
        answered: requests that have ended with an answer.
        failed: requests that have ended with an error.
        cancelled: requests that were cancelled.
        prompt_tokens: tokens of all prompts that were admitted.
        generated_tokens: tokens generated so far.
        sweeps: sweeps so far.
        sweep_s: seconds per sweep in the last minute of work, or as planned before anything was measured.
        token_s: seconds per token of one answer; with a draft, a sweep gives several.
        tokens_per_s: tokens per second of all running requests in the last minute; 0 when idle.
        wait_s: the estimated seconds until the first token of a request that comes now and does not sample.
        reused_tokens: tokens of prompts that were not computed again.
        prefix_bytes: what the prefix cache takes.
    """

    running: int
    waiting: int
    most_waiting: int
    answered: int
    failed: int
    cancelled: int
    prompt_tokens: int
    generated_tokens: int
    sweeps: int
    sweep_s: float
    token_s: float
    tokens_per_s: float
    wait_s: float
    reused_tokens: int = 0
    prefix_bytes: int = 0
