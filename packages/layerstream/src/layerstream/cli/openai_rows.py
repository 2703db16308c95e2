"""Rows of an OpenAI batch: a custom_id and the body of a request, answered with the body of a response.

A row is turned into one of our own and answered as such. A field that would change the answer, and is not
supported, is refused by its name.

Source: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from ..uses.batching.stop_texts import before_stop
from . import backend
from .jobs import JobRow
from .prompt_rows import PromptDefaults, PromptRows
from .row_job import RowRefusedError, error_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..uses.batching.requests import GenerationResult

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"

_PROMPTS = {CHAT_URL: "messages", COMPLETION_URL: "prompt"}
"""The field of the body that holds the prompt, by the request's url."""

_HONOURED = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop")

_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)
"""Fields that change no answer."""

_NEUTRAL: Mapping[str, Collection[Any]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields that are not supported, with the values that leave the answer as it is; null always does."""

_MOST_TEMPERATURE = 2.0


class _FieldError(PlanError):
    """A field of a row cannot be used.

    Attributes:
        param: the field.
        code: OpenAI's word for what is wrong.
    """

    def __init__(self, message: str, *, param: str, code: str = "invalid_value") -> None:
        """Store the message, the field and the code."""
        super().__init__(message)
        self.param, self.code = param, code


class OpenAIRows(PromptRows):
    """Rows with a `custom_id`, a `method`, a `url` and a `body`, as OpenAI's batches have them."""

    needs = "a custom_id, method, url and body"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, defaults: PromptDefaults, vocab_size: int, *, model: str
    ) -> None:
        """Answer in the name of `model`; otherwise as `PromptRows`."""
        super().__init__(tokenizer, defaults, vocab_size)
        self._model = model
        self._urls: dict[int, str] = {}

    def matches(self, row: JobRow) -> bool:
        """Return whether `row` has a body or a custom_id."""
        return "body" in row.fields or "custom_id" in row.fields

    def add(self, row: JobRow) -> None:
        """Add `row` to those to answer.

        Raises:
            RowRefusedError: the row is invalid.
        """
        try:
            url, body = _checked_request(row)
            fields = {**_settings(body, self._defaults), "ids": self._prompt_ids(url, body)}
            super().add(replace(row, fields=fields))
        except PlanError as error:
            raise RowRefusedError(str(error), fields=_refusal(row, error)) from error
        self._urls[row.number] = url

    def _prompt_ids(self, url: str, body: Mapping[str, Any]) -> list[int]:
        name = _PROMPTS[url]
        prompt = body.get(name)
        if name == "messages":
            backend.check_messages(prompt)
            # most templates do not know the newer name
            turns = [
                {**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in prompt or ()
            ]
            return backend.encode_messages(self._tokenizer, turns)
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            prompt = prompt[0]
        if isinstance(prompt, str) and prompt:
            return backend.encode_prompt(self._tokenizer, prompt, chat=False)
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            return prompt
        raise _FieldError(
            f"prompt must be one text or one list of token ids, not empty; got {prompt!r:.60}", param="prompt"
        )

    def result_fields(self, row: JobRow, result: GenerationResult) -> dict[str, Any]:
        """Return the result of `row` as the fields of its line.

        Raises:
            StreamError, MemoryError: the row is not the cause of the error; it stays open.
        """
        if result.error is not None:
            message = error_fields(result.error)["error"]
            return _line(row.id, None, {"code": "server_error", "message": message})
        body = _answer_body(row, result, is_chat=self._urls[row.number] == CHAT_URL, model=self._model)
        # the row's id is its custom_id
        return _line(row.id, _response(row, 200, body), None)


def _checked_request(row: JobRow) -> tuple[str, Mapping[str, Any]]:
    """Return the url and the body of `row`, which holds no field that is unknown or not supported."""
    fields = row.fields
    if not isinstance(fields.get("custom_id"), str) or not fields["custom_id"]:
        raise _FieldError("custom_id must be a text that is not empty", param="custom_id")
    if unknown := sorted(set(fields) - {"custom_id", "method", "url", "body"}):
        raise _FieldError(f"unknown key {unknown[0]} beside the body", param=unknown[0])
    if fields.get("method") != "POST":
        raise _FieldError(f"method must be POST; got {fields.get('method')!r:.60}", param="method")
    url, body = fields.get("url"), fields.get("body")
    if url not in (CHAT_URL, COMPLETION_URL):
        raise _FieldError(f"url must be {CHAT_URL} or {COMPLETION_URL}; got {url!r:.60}", param="url")
    if not isinstance(body, dict):
        raise _FieldError(f"body must be a JSON object; got {body!r:.60}", param="body")
    for name, value in body.items():
        _check_field(name, value, prompt=_PROMPTS[url])
    return url, body


def _check_field(name: str, value: Any, *, prompt: str) -> None:
    if name in (prompt, *_HONOURED) or name in _WITHOUT_EFFECT:
        return
    if name not in _NEUTRAL:
        raise _FieldError(f"the field {name} is not known here", param=name, code="unknown_parameter")
    if value is not None and not any(_is_same(value, neutral) for neutral in _NEUTRAL[name]):
        raise _FieldError(
            f"{name}={value!r:.60} is not supported: leave {name} out",
            param=name,
            code="unsupported_parameter",
        )


def _is_same(value: Any, neutral: Any) -> bool:
    # 0 is not false: a completion's logprobs=0 asks for one
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _settings(body: Mapping[str, Any], defaults: PromptDefaults) -> dict[str, Any]:
    """Return the settings of a body as keys of our own rows."""
    given = {name: body[name] for name in _HONOURED if body.get(name) is not None}
    settings = _sampling(given, defaults)
    for name, least in (("max_tokens", 1), ("max_completion_tokens", 1), ("seed", 0)):
        if name in given:
            if type(given[name]) is not int or given[name] < least:
                raise _FieldError(
                    f"{name} must be an integer of at least {least}; got {given[name]!r:.60}", param=name
                )
            settings["seed" if name == "seed" else "max_new_tokens"] = given[name]
    if "stop" in given:
        stop = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
        if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
            raise _FieldError(
                f"stop must be a text or a list of texts, none of them empty; got {given['stop']!r:.60}",
                param="stop",
            )
        settings["stop"] = stop
    return settings


def _sampling(given: Mapping[str, Any], defaults: PromptDefaults) -> dict[str, Any]:
    if "temperature" in given:
        _check_number("temperature", given["temperature"], _MOST_TEMPERATURE)
    if "top_p" in given:
        _check_number("top_p", given["top_p"], 1.0)
    if given.get("temperature") == 0:
        return {"do_sample": False}
    settings: dict[str, Any] = {}
    if "temperature" in given:
        settings["temperature"] = float(given["temperature"])
    if "top_p" in given:
        settings["options"] = {"top_p": float(given["top_p"])}
        # otherwise the job's own temperature counts
        if "temperature" not in given and defaults.temperature is None:
            settings["do_sample"] = True
    return settings


def _check_number(name: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise _FieldError(f"{name} must be a number from 0 to {most:g}; got {value!r:.60}", param=name)


def _answer_body(row: JobRow, result: GenerationResult, *, is_chat: bool, model: str) -> dict[str, Any]:
    text = before_stop(result.text or "", result.request.stop)
    if is_chat:
        message = {"role": "assistant", "content": text, "refusal": None}
        kind, prefix, said = "chat.completion", "chatcmpl", {"index": 0, "message": message}
    else:
        kind, prefix, said = "text_completion", "cmpl", {"index": 0, "text": text}
    new_tokens = len(result.tokens)
    return {
        "id": f"{prefix}-{_name(row)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [{**said, "logprobs": None, "finish_reason": result.finish_reason}],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": result.prompt_tokens + new_tokens,
        },
    }


def _refusal(row: JobRow, error: PlanError) -> dict[str, Any]:
    message = " ".join(str(error).split())
    code, param = (error.code, error.param) if isinstance(error, _FieldError) else ("invalid_value", None)
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return _line(row.fields.get("custom_id"), _response(row, 400, body), {"code": code, "message": message})


def _response(row: JobRow, status_code: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"status_code": status_code, "request_id": f"req-{_name(row)}", "body": body}


def _line(custom_id: Any, response: dict[str, Any] | None, error: dict[str, Any] | None) -> dict[str, Any]:
    return {"custom_id": custom_id, "response": response, "error": error}


def _name(row: JobRow) -> str:
    """Return what tells this row from all others, in every start of the job."""
    return f"{row.digest}-{row.number}"
