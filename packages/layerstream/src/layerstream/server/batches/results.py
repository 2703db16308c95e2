"""The lines of output and error files, as OpenAI writes them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .json_text import write_json

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "The batch was cancelled before this request was executed.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineUsage:
    """The tokens of a line.

    Attributes:
        input_tokens: those of the prompt.
        cached_tokens: those of the prompt that came from the prefix cache.
        output_tokens: those of the answer.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What a line of a batch has come to.

    Attributes:
        text: one line of JSON, without its end.
        is_failed: whether it belongs into the file of errors.
        usage: the tokens that its answer reports.
    """

    text: str
    is_failed: bool
    usage: LineUsage = LineUsage()


def result_of_response(custom_id: str, status: int, body: Mapping[str, Any]) -> LineResult:
    """Return the result of a line that the endpoint answered, well or not.

    Raises:
        TypeError, ValueError: the body cannot be written as JSON.
    """
    response = {"status_code": status, "request_id": f"req_{secrets.token_hex(16)}", "body": body}
    return LineResult(
        text=_line(custom_id, response, None), is_failed=not 200 <= status < 300, usage=_usage_in(body)
    )


def result_without_response(custom_id: str, code: str, message: str) -> LineResult:
    """Return the result of a line that no endpoint has answered."""
    return LineResult(text=_line(custom_id, None, {"code": code, "message": message}), is_failed=True)


def _usage_in(body: Mapping[str, Any]) -> LineUsage:
    usage = body.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return LineUsage(
        input_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=details.get("cached_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
    )


def _line(custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, str] | None) -> str:
    line_id = f"batch_req_{secrets.token_hex(16)}"
    return write_json({"id": line_id, "custom_id": custom_id, "response": response, "error": error})
