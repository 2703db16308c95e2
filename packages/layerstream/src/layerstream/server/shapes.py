"""Answers in OpenAI's shapes, whole and in chunks, made of the `openai` package's own types."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import PromptTokensDetails
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from ..uses.serving.events import TokenChance
from .bodies import ChatBody
from .chances import TokenTexts, chat_chances, completion_chances, joined, prompt_chances
from .requests import PreparedBody

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswer:
    """One answer, complete.

    Attributes:
        text: its text.
        num_tokens: its tokens.
        reused_tokens: tokens of its prompt that came from the prefix cache.
        finish_reason: `"stop"` or `"length"`.
        chances: one entry for each token, if the body asks for them.
        prompt_chances: one entry for each token of the prompt after the first, if the body asks for them.
    """

    text: str
    num_tokens: int
    reused_tokens: int
    finish_reason: str
    chances: Sequence[TokenChance]
    prompt_chances: Sequence[TokenChance] = ()


class Shape(ABC):
    """The answers to one body, in the shape of its endpoint.

    Attributes:
        is_prompt_only: only the prompts are shown; the answers are not.
    """

    prefix = ""

    def __init__(self, prepared: PreparedBody, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        """Give the answers to a body one id, one time and the model's name."""
        self._prepared = prepared
        self._texts = TokenTexts(tokenizer)
        self._num_top = prepared.body.num_top_logprobs
        self.is_prompt_only = prepared.body.is_prompt_only
        self._common: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @abstractmethod
    def whole(self, answers: Sequence[WholeAnswer]) -> BaseModel:
        """Return all answers in one body."""

    @abstractmethod
    def first_chunk(self, answer: int, scored: Sequence[TokenChance]) -> BaseModel | None:
        """Return the chunk before an answer's first part; None if there is none.

        Args:
            answer: the answer's number.
            scored: the chances of the prompt's tokens after the first, if the body asks for them.
        """

    @abstractmethod
    def part_chunk(self, answer: int, text: str, chances: Sequence[TokenChance]) -> BaseModel:
        """Return the chunk of the next part of an answer."""

    @abstractmethod
    def end_chunk(self, answer: int, finish_reason: str) -> BaseModel:
        """Return an answer's last chunk."""

    @abstractmethod
    def usage_chunk(self, num_tokens: int, reused: Sequence[int]) -> BaseModel:
        """Return the chunk after all answers.

        Args:
            num_tokens: the tokens of all answers together.
            reused: for each answer, the tokens of its prompt that came from the prefix cache.
        """

    def _usage(self, num_tokens: int, reused: Sequence[int]) -> CompletionUsage:
        prompt_tokens = self._prepared.prompt_tokens
        per_prompt = self._prepared.body.num_answers
        # a prompt counts once, also if it has several answers: what one of them had to compute is not cached
        cached = [min(reused[at : at + per_prompt]) for at in range(0, len(reused), per_prompt)]
        return CompletionUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=num_tokens,
            total_tokens=prompt_tokens + num_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(cached)),
        )

    def _usage_of(self, answers: Sequence[WholeAnswer]) -> CompletionUsage:
        num_tokens = 0 if self.is_prompt_only else sum(answer.num_tokens for answer in answers)
        return self._usage(num_tokens, [answer.reused_tokens for answer in answers])

    def _no_usage(self) -> dict[str, Any]:
        """Return the field that chunks have if a chunk of usage follows."""
        return {"usage": None} if self._prepared.body.has_usage_chunk else {}


class ChatShape(Shape):
    """`chat.completion` and `chat.completion.chunk`."""

    prefix = "chatcmpl"

    def whole(self, answers: Sequence[WholeAnswer]) -> BaseModel:
        """Return all answers in one body."""
        choices = []
        for number, answer in enumerate(answers):
            message = ChatCompletionMessage(role="assistant", content=answer.text, refusal=None)
            reason = cast(FinishReason, answer.finish_reason)
            logprobs = None
            if self._num_top is not None:
                entries = chat_chances(answer.chances, self._texts, self._num_top)
                logprobs = ChoiceLogprobs(content=entries, refusal=None)
            choices.append(Choice(index=number, message=message, finish_reason=reason, logprobs=logprobs))
        usage = self._usage_of(answers)
        return ChatCompletion(**self._common, object="chat.completion", choices=choices, usage=usage)

    def first_chunk(self, answer: int, scored: Sequence[TokenChance]) -> BaseModel | None:
        """Return the chunk that names the role."""
        return self._chunk(answer, ChoiceDelta(role="assistant", content="", refusal=None))

    def part_chunk(self, answer: int, text: str, chances: Sequence[TokenChance]) -> BaseModel:
        """Return the chunk of the next part of an answer."""
        logprobs = None
        if self._num_top is not None:
            entries = chat_chances(chances, self._texts, self._num_top)
            logprobs = ChunkLogprobs(content=entries, refusal=None)
        return self._chunk(answer, ChoiceDelta(content=text), logprobs=logprobs)

    def end_chunk(self, answer: int, finish_reason: str) -> BaseModel:
        """Return an answer's last chunk."""
        return self._chunk(answer, ChoiceDelta(), finish_reason=cast(FinishReason, finish_reason))

    def usage_chunk(self, num_tokens: int, reused: Sequence[int]) -> BaseModel:
        """Return the chunk after all answers."""
        usage = self._usage(num_tokens, reused)
        return ChatCompletionChunk(**self._common, object="chat.completion.chunk", choices=[], usage=usage)

    def _chunk(
        self,
        answer: int,
        delta: ChoiceDelta,
        logprobs: ChunkLogprobs | None = None,
        finish_reason: FinishReason | None = None,
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(index=answer, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return ChatCompletionChunk(
            **self._common, object="chat.completion.chunk", choices=[choice], **self._no_usage()
        )


class CompletionShape(Shape):
    """`text_completion`, which is also the shape of its chunks."""

    prefix = "cmpl"

    def __init__(self, prepared: PreparedBody, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        """Give the answers to a body one id, one time and the model's name."""
        super().__init__(prepared, tokenizer, model)
        self._offsets = [len(self._echo(answer)) for answer in range(len(prepared.requests))]

    def whole(self, answers: Sequence[WholeAnswer]) -> BaseModel:
        """Return all answers in one body."""
        choices = [
            CompletionChoice(
                index=number,
                text=self._echo(number) + ("" if self.is_prompt_only else answer.text),
                finish_reason=cast(FinishReason, "length" if self.is_prompt_only else answer.finish_reason),
                logprobs=self._logprobs(number, answer),
            )
            for number, answer in enumerate(answers)
        ]
        usage = self._usage_of(answers)
        return Completion(**self._common, object="text_completion", choices=choices, usage=usage)

    def first_chunk(self, answer: int, scored: Sequence[TokenChance]) -> BaseModel | None:
        """Return the chunk that repeats the prompt, if the body asks for it."""
        echo = self._echo(answer)
        logprobs = self._of_prompt(answer, scored) if self._prepared.body.scores_prompt else None
        return self._chunk(answer, text=echo, logprobs=logprobs, finish_reason=None) if echo else None

    def part_chunk(self, answer: int, text: str, chances: Sequence[TokenChance]) -> BaseModel:
        """Return the chunk of the next part of an answer."""
        logprobs = None
        if self._num_top is not None:
            logprobs = completion_chances(chances, self._texts, self._num_top, self._offsets[answer])
            self._offsets[answer] += sum(map(len, logprobs.tokens or []))
        return self._chunk(answer, text=text, logprobs=logprobs, finish_reason=None)

    def end_chunk(self, answer: int, finish_reason: str) -> BaseModel:
        """Return an answer's last chunk."""
        return self._chunk(answer, text="", logprobs=None, finish_reason=finish_reason)

    def usage_chunk(self, num_tokens: int, reused: Sequence[int]) -> BaseModel:
        """Return the chunk after all answers."""
        usage = self._usage(num_tokens, reused)
        return Completion(**self._common, object="text_completion", choices=[], usage=usage)

    def _chunk(self, answer: int, **fields: Any) -> Completion:
        # a chunk in the middle has no reason yet, which the type does not know
        choice = CompletionChoice.model_construct(None, index=answer, **fields)
        return Completion.model_construct(
            None, **self._common, object="text_completion", choices=[choice], **self._no_usage()
        )

    def _logprobs(self, number: int, answer: WholeAnswer) -> Logprobs | None:
        if self._num_top is None:
            return None
        chances = () if self.is_prompt_only else answer.chances
        own = completion_chances(chances, self._texts, self._num_top, self._offsets[number])
        if not self._prepared.body.scores_prompt:
            return own
        return joined(self._of_prompt(number, answer.prompt_chances), own)

    def _of_prompt(self, answer: int, chances: Sequence[TokenChance]) -> Logprobs:
        first = self._prepared.prompts[self._prepared.prompt_of(answer)][0]
        return prompt_chances(first, chances, self._texts, self._num_top or 0, len(self._echo(answer)))

    def _echo(self, answer: int) -> str:
        return self._prepared.echo[self._prepared.prompt_of(answer)]


def shape_of(prepared: PreparedBody, tokenizer: PreTrainedTokenizerBase, model: str) -> Shape:
    """Return the shape for the answers to a body."""
    kind = ChatShape if isinstance(prepared.body, ChatBody) else CompletionShape
    return kind(prepared, tokenizer, model)
