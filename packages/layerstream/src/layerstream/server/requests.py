"""From the body of a request to generation requests: one for each answer, with its prompt as tokens.

Everything that can be refused is refused here, before anything joins the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import PlanError, first_line
from ..uses.batching.chat import encode_messages
from ..uses.batching.requests import GenerationRequest
from ..uses.serving.protocol import Service
from .bodies import ChatBody, CompletionBody, GenerationBody, chat_body, completion_body
from .errors import ApiError
from .model_card import model_id
from .settings import ServerSettings

_COMPLETION_TOKENS = 16
"""OpenAI's default for completions."""

_COLDEST = 0.001
_SEEDS = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBody:
    """A body that can be answered.

    Attributes:
        body: the body itself.
        requests: one for each answer, those of a prompt one after another.
        prompts: each prompt's tokens.
        echo: what each prompt's answers begin with; empty texts unless the body asks for an echo.
    """

    body: ChatBody | CompletionBody
    requests: tuple[GenerationRequest, ...]
    prompts: tuple[tuple[int, ...], ...]
    echo: tuple[str, ...]

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of all prompts, each counted once."""
        return sum(len(prompt) for prompt in self.prompts)

    def prompt_of(self, answer: int) -> int:
        """Return which prompt an answer belongs to."""
        return answer // self.body.num_answers


def prepare_chat(service: Service, settings: ServerSettings, fields: Mapping[str, Any]) -> PreparedBody:
    """Return the requests of a chat; takes long for long conversations.

    Raises:
        ApiError: something is wrong with the body; the error names the field.
    """
    body = chat_body(fields)
    _check_common(service, settings, body)
    _check_top_logprobs(body, settings, "top_logprobs")
    turns = [_turn(message.model_dump(exclude_unset=True), service.tokenizer) for message in body.messages]
    try:
        prompt = tuple(encode_messages(service.tokenizer, turns))
    except PlanError as error:
        raise ApiError(first_line(error), param="messages") from error
    return _prepared(service, settings, body, (prompt,), ("",))


def prepare_completion(service: Service, settings: ServerSettings, fields: Mapping[str, Any]) -> PreparedBody:
    """Return the requests of a completion; takes long for long prompts.

    Raises:
        ApiError: something is wrong with the body; the error names the field.
    """
    body = completion_body(fields)
    _check_common(service, settings, body)
    _check_top_logprobs(body, settings, "logprobs")
    if len(body.prompt) > settings.max_prompts:
        raise ApiError(
            f"The body has {len(body.prompt)} prompts; at most {settings.max_prompts} are allowed in one.",
            param="prompt",
        )
    prompts = tuple(_tokens(prompt, service.tokenizer) for prompt in body.prompt)
    echo = tuple(_as_text(prompt, service.tokenizer) if body.echo else "" for prompt in body.prompt)
    return _prepared(service, settings, body, prompts, echo)


def _prepared(
    service: Service,
    settings: ServerSettings,
    body: ChatBody | CompletionBody,
    prompts: tuple[tuple[int, ...], ...],
    echo: tuple[str, ...],
) -> PreparedBody:
    field = "messages" if isinstance(body, ChatBody) else "prompt"
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        _check_prompt(len(prompt), service, settings, field)
        length = _default_length(len(prompt), service, settings, body)
        if body.most_tokens is not None:
            # max_tokens 0: one token is generated, and thrown away
            length = max(1, body.most_tokens)
        _check_length(len(prompt), length, service, settings)
        requests += [_request(body, prompt, length, answer) for answer in range(body.num_answers)]
    return PreparedBody(body=body, requests=tuple(requests), prompts=prompts, echo=echo)


def _request(body: GenerationBody, prompt: tuple[int, ...], length: int, answer: int) -> GenerationRequest:
    temperature, top_p = body.temperature, body.top_p
    is_greedy = (temperature is None and top_p is None) or top_p == 0
    does_sample = not is_greedy and (temperature is None or temperature >= _COLDEST)
    return GenerationRequest(
        prompt=prompt,
        max_new_tokens=length,
        do_sample=does_sample,
        # torch takes no negative seeds
        seed=None if body.seed is None else (body.seed + answer) % _SEEDS,
        temperature=temperature if does_sample else None,
        stop=tuple(dict.fromkeys(body.stop or ())),
        options={"top_p": top_p} if does_sample and top_p is not None else {},
    )


def _check_common(service: Service, settings: ServerSettings, body: GenerationBody) -> None:
    name = model_id(service, settings)
    if body.model is not None and body.model != name:
        raise ApiError(
            f"The model {body.model[:80]!r} is not available here; this server serves {name!r}.",
            status=404,
            param="model",
            code="model_not_found",
        )
    if body.num_answers > settings.max_n:
        raise ApiError(f"n is {body.num_answers}; at most {settings.max_n} is allowed.", param="n")
    stop = body.stop or []
    if len(stop) > settings.max_stop_texts:
        raise ApiError(
            f"stop has {len(stop)} texts; at most {settings.max_stop_texts} are allowed.", param="stop"
        )
    if any(len(text) > settings.max_stop_characters for text in stop):
        raise ApiError(
            f"A stop text is longer than the {settings.max_stop_characters} characters allowed.", param="stop"
        )


def _check_top_logprobs(body: ChatBody | CompletionBody, settings: ServerSettings, field: str) -> None:
    if (body.num_top_logprobs or 0) > settings.max_top_logprobs:
        raise ApiError(
            f"{field} is {body.num_top_logprobs}; at most {settings.max_top_logprobs} is allowed.",
            param=field,
        )


def _check_prompt(prompt: int, service: Service, settings: ServerSettings, field: str) -> None:
    if prompt == 0:
        raise ApiError("The prompt is empty: it has no tokens.", param=field)
    limit = min(settings.max_prompt_tokens or service.context_tokens, service.context_tokens - 1)
    if prompt > limit:
        raise ApiError(
            f"The prompt has {prompt} tokens; at most {limit} are allowed.",
            param=field,
            code="context_length_exceeded",
        )


def _check_length(prompt: int, length: int, service: Service, settings: ServerSettings) -> None:
    limit = settings.max_new_tokens or service.context_tokens
    if length > limit:
        raise ApiError(
            f"max_tokens is {length}; here at most {limit} are allowed.",
            param="max_tokens",
        )
    if prompt + length > service.context_tokens:
        raise ApiError(
            f"The prompt has {prompt} tokens and the answer may take {length}; together at most "
            f"{service.context_tokens} are allowed: make max_tokens smaller, or the prompt shorter.",
            param="max_tokens",
            code="context_length_exceeded",
        )


def _default_length(
    prompt: int, service: Service, settings: ServerSettings, body: ChatBody | CompletionBody
) -> int:
    usual = settings.default_new_tokens if isinstance(body, ChatBody) else _COMPLETION_TOKENS
    return min(usual, settings.max_new_tokens or usual, service.context_tokens - prompt)


def _turn(message: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a turn with a role that the chat template knows: few know OpenAI's name for a system."""
    if message["role"] == "developer" and "developer" not in str(tokenizer.chat_template):
        return {**message, "role": "system"}
    return message


def _tokens(prompt: str | list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt)["input_ids"])
    if not all(0 <= token < len(tokenizer) for token in prompt):
        # a token that the embedding does not have would end the whole sweep
        raise ApiError(f"The model has tokens from 0 to {len(tokenizer) - 1} only.", param="prompt")
    return tuple(prompt)


def _as_text(prompt: str | list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return prompt if isinstance(prompt, str) else str(tokenizer.decode(prompt))
