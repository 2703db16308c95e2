"""The bodies of requests: which fields are supported, and which are refused by name.

A field that is not known here is ignored, since clients send many. A field that is known, not supported and
would change the answer is refused unless it has the value that changes nothing.

Sampling: a body without `temperature` and `top_p` gets the likeliest tokens (greedy), unlike OpenAI's, where
the temperature is 1 then. With one of them the answer is sampled; what is not given then comes from the
checkpoint's generation config. A temperature below 0.001 is greedy too, since sampling cannot compute it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from .errors import ApiError, invalid_fields

_NOTHING = (None,)
_EMPTY: tuple[Any, ...] = (None, [], {}, "")
_ZERO = (None, 0)
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": _NOTHING,
    "chat_template_kwargs": _EMPTY,
    "frequency_penalty": _ZERO,
    "function_call": (None, "none", "auto"),
    "functions": _EMPTY,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "ignore_eos": (None, False),
    "logit_bias": _EMPTY,
    "min_p": _ZERO,
    "min_tokens": _ZERO,
    "modalities": (None, ["text"]),
    "moderation": _NOTHING,
    "prediction": _NOTHING,
    "presence_penalty": _ZERO,
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "stop_token_ids": _EMPTY,
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": _EMPTY,
    "top_k": (None, 0, -1),
    "web_search_options": _NOTHING,
}
"""Fields that would change the answer, each with the values that do not."""

_SEED_LIMIT = 2**63

_Kind = TypeVar("_Kind", bound=BaseModel)


def _one_or_more_texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _one_or_more_prompts(value: Any) -> Any:
    """Return a list of prompts: texts or lists of tokens."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text, a list of tokens, or a list of either; it cannot be empty")
    if all(type(item) is int for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    is_tokens = all(isinstance(item, list) and all(type(token) is int for token in item) for item in value)
    if not is_tokens:
        raise ValueError("must be a text, a list of tokens, or a list of either; it mixes them")
    return value


def _readable_content(value: Any) -> Any:
    """Refuse what is not text, and say what it is; a union would name its last member instead."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text, or a list of text parts")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            found = f"; got one of type {kind[:40]!r}" if isinstance(kind, str) and kind != "text" else ""
            raise ValueError(
                'has a part that is not {"type": "text", "text": "..."}, and only text can be read' + found
            )
    return value


def _whole_characters(text: str) -> str:
    """Refuse half a surrogate pair, which JSON's readers let through in part and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode") from error
    return text


def _no_empty_text(texts: list[str]) -> list[str]:
    if not all(texts):
        raise ValueError("must not hold an empty text")
    return texts


Text = Annotated[str, AfterValidator(_whole_characters)]
Stop = Annotated[list[Text], BeforeValidator(_one_or_more_texts), AfterValidator(_no_empty_text)]
Prompts = Annotated[list[Text | list[int]], BeforeValidator(_one_or_more_prompts)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextPart(_Body):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: Text


Content = Annotated[Text | list[TextPart] | None, BeforeValidator(_readable_content)]


class ChatMessage(_Body):
    """A turn of a conversation. A chat template may know more keys than these; it gets all of them."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None


class StreamOptions(_Body):
    """What a stream reports beside the answer."""

    include_usage: bool | None = None


class GenerationBody(_Body):
    """The fields that chats and completions share.

    Attributes:
        model: the model's name; without it, the one that is served.
        n: how many answers to each prompt.
        seed: of the first answer; the following ones count on from it.
        stop: texts that end the answer.
    """

    model: Text | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-_SEED_LIMIT, lt=_SEED_LIMIT)
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)

    @property
    def has_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_answers(self) -> int:
        """How many answers to each prompt."""
        return self.n or 1


class ChatBody(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)

    scores_prompt: ClassVar = False
    is_prompt_only: ClassVar = False

    @property
    def num_top_logprobs(self) -> int | None:
        """How many likeliest tokens to report with each token; None reports no chances."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """How long each answer may be, if the body says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(GenerationBody):
    """The body of `POST /v1/completions`."""

    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    best_of: int | None = Field(default=None, ge=1)

    @property
    def scores_prompt(self) -> bool:
        """Whether the tokens of the prompt are reported with their chances."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def is_prompt_only(self) -> bool:
        """Whether only the prompt is asked for, and no answer."""
        return self.max_tokens == 0

    @property
    def num_top_logprobs(self) -> int | None:
        """How many likeliest tokens to report with each token; None reports no chances."""
        return self.logprobs

    @property
    def most_tokens(self) -> int | None:
        """How long each answer may be, if the body says."""
        return self.max_tokens


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`.

    Raises:
        ApiError: it is no JSON object: not UTF-8, not JSON (which has no NaN), nested too deeply, or a text
            in it has half a surrogate pair.
    """
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("The body must be a JSON object, such as {...}.", code="invalid_json")
    return value


def chat_body(fields: Mapping[str, Any]) -> ChatBody:
    """Return the body of a chat.

    Raises:
        ApiError: a field is wrong or not supported; the error names it.
    """
    _refuse_unsupported(fields)
    body = _validated(ChatBody, fields)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    for at, message in enumerate(body.messages):
        if (
            not message.content
            and message.content != ""
            and not (message.model_extra or {}).get("tool_calls")
        ):
            raise ApiError(
                f"messages.{at}.content: a message needs a text, or a list of text parts.",
                param=f"messages.{at}.content",
            )
    return body


def completion_body(fields: Mapping[str, Any]) -> CompletionBody:
    """Return the body of a completion.

    Raises:
        ApiError: a field is wrong or not supported; the error names it.
    """
    _refuse_unsupported(fields)
    body = _validated(CompletionBody, fields)
    if body.best_of is not None and body.best_of != body.num_answers:
        raise ApiError(
            f"best_of is {body.best_of} and n is {body.num_answers}: answers are not ranked here. "
            "Leave best_of out.",
            param="best_of",
        )
    if body.max_tokens == 0 and not body.echo:
        raise ApiError("max_tokens can be 0 only with echo: give at least 1.", param="max_tokens")
    return body


def _validated(kind: type[_Kind], fields: Mapping[str, Any]) -> _Kind:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid_fields(error) from error


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    for name, neutral in _UNSUPPORTED.items():
        if name in fields and not any(_is_same(fields[name], value) for value in neutral):
            raise ApiError(f"{name} is not supported here: leave it out.", param=name, code="unsupported")


def _is_same(given: Any, neutral: Any) -> bool:
    """Tell whether two values are equal, where True is no number."""
    return isinstance(given, bool) == isinstance(neutral, bool) and bool(given == neutral)
