"""Every error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

A message says what was asked, what was found and what to do. It tells nothing of the machine: an error that
nobody foresaw gets one fixed sentence.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ..errors import LayerstreamError, PlanError, QueueFullError, ServiceClosedError, first_line

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_MESSAGES = {
    404: "There is no such address. The addresses are /v1/chat/completions, /v1/completions, /v1/models, "
    "/v1/files and /v1/batches.",
    405: "This address does not take this method.",
}
_CODES = {408: "body_too_slow", 413: "body_too_large", 429: "too_many_requests", 503: "closing"}
_NO_DETAIL = "The server could not answer because of an error of its own. Its log says which."


_log = logging.getLogger(__name__)


class ApiError(LayerstreamError):
    """An answer that is an error.

    Attributes:
        status: the HTTP status.
        param: the field of the body that is wrong; None if no field is.
        code: a word for programs, such as `model_not_found`.
        retry_after_s: seconds after which to try again; None says nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Store the message and the fields."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        headers = {} if self.status != 401 else {"WWW-Authenticate": "Bearer"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers

    def response(self) -> JSONResponse:
        """Return it as a response."""
        return JSONResponse(self.body(), self.status, self.headers())


def api_error(error: Exception) -> ApiError:
    """Return what a client is told about an error of the service.

    Only errors about the request itself keep their message; all others may tell of files and devices.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        message = f"The queue is full: {error.waiting} requests wait already. Try again later."
        return ApiError(message, status=429, code="queue_full", retry_after_s=error.eta_s)
    if isinstance(error, ServiceClosedError):
        return closing()
    if isinstance(error, PlanError):
        return ApiError(first_line(error))
    _log.error("a request failed", exc_info=error)
    return ApiError(_NO_DETAIL, status=500)


def closing() -> ApiError:
    """Return the error for requests that come, or are cut off, while the server closes."""
    return ApiError("The server is closing and takes no more requests.", status=503, code="closing")


def invalid_fields(error: ValidationError | RequestValidationError) -> ApiError:
    """Return the first wrong field of a body as an error that names it."""
    first = error.errors()[0]
    # a union adds the name of one of its types, such as list[int], which is no field
    path = [str(part) for part in first["loc"] if part != "str" and "[" not in str(part)]
    param = ".".join(path) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(f"{param}: {message}" if param else message, param=param)


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of an app have OpenAI's shape."""

    async def on_api_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        has_own_text = error.detail != HTTPStatus(error.status_code).phrase
        message = str(error.detail) if has_own_text else _MESSAGES.get(error.status_code, error.detail)
        code = _CODES.get(error.status_code)
        return _with_headers(ApiError(message, status=error.status_code, code=code), error.headers)

    async def on_invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid_fields(error).response()

    async def on_anything(_request: Request, _error: Exception) -> Response:
        return ApiError(_NO_DETAIL, status=500).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_anything)


def _with_headers(error: ApiError, headers: Mapping[str, str] | None) -> Response:
    response = error.response()
    response.headers.update(headers or {})
    return response
