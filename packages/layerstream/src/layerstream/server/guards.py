"""What stands before the routes: who may ask, from where, with how large a body, and how many at once.

Pure ASGI, so that a stream passes through as it is. The order is the point: a request is refused before a
byte of its body is read, a body is counted as it arrives, and a request counts as open only once its whole
body is there, so that slow clients take nobody's place.
"""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, closing
from .settings import ServerSettings

HEALTH = "/health"
METRICS = "/metrics"
_UPLOADS = "/v1/files"
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_RETRY_AFTER_S = 10


class OpenRequests:
    """The requests that are answered or wait, in one event loop.

    Attributes:
        count: how many there are.
        is_draining: no more of them are taken, because the server is about to end.
    """

    def __init__(self, limit: int) -> None:
        """Allow `limit` at once."""
        self.count = 0
        self.is_draining = False
        self._limit = limit

    def enter(self) -> None:
        """Count one more.

        Raises:
            HTTPException: there are too many, or the server is about to end. (FastAPI passes this class on
                from inside a body; it would make a 400 of any other.)
        """
        if self.is_draining:
            raise HTTPException(503, str(closing()))
        if self.count >= self._limit:
            message = f"{self._limit} requests are open already. Try again later."
            raise HTTPException(429, message, {"Retry-After": str(_RETRY_AFTER_S)})
        self.count += 1

    def leave(self) -> None:
        """Count one less."""
        self.count -= 1


class Guard:
    """Refuses requests before the routes see them; an ASGI middleware."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, open_requests: OpenRequests) -> None:
        """Stand before `app`."""
        self._app, self._settings, self._open = app, settings, open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with a body that is counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        body = _CountedBody(receive, scope["path"], self._settings, self._open)
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.leave()

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        _check_host(headers, self._settings)
        _check_origin(headers, self._settings)
        if scope["path"] == HEALTH:
            return
        if self._settings.api_key is not None:
            _check_key(headers, self._settings.api_key)
        if self._open.is_draining and scope["path"] != METRICS:
            raise closing()
        limit, _ = _body_limits(scope["path"], self._settings)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise ApiError(_too_large(limit), status=413, code="body_too_large")


class _CountedBody:
    """A body on its way in: ends with an error if it gets too large or takes too long."""

    def __init__(
        self, receive: Receive, path: str, settings: ServerSettings, open_requests: OpenRequests
    ) -> None:
        self._receive, self._open = receive, open_requests
        self._limit, self._within_s = _body_limits(path, settings)
        self._deadline = asyncio.get_running_loop().time() + self._within_s
        self._num_bytes = 0
        self._has_arrived = self._is_open = False

    async def receive(self) -> Message:
        """Return the next message of the client."""
        if self._has_arrived:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            text = f"The body did not arrive within {self._within_s:g} s."
            raise HTTPException(408, text, {"Connection": "close"}) from error
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            if self._num_bytes > self._limit:
                raise HTTPException(413, _too_large(self._limit))
            self._has_arrived = not message.get("more_body", False)
            if self._has_arrived:
                self._open.enter()
                self._is_open = True
        return message

    def leave(self) -> None:
        """Take note that the request has ended."""
        if self._is_open:
            self._is_open = False
            self._open.leave()


def _body_limits(path: str, settings: ServerSettings) -> tuple[int, float]:
    """Return how large a body may be, and how many seconds it may take."""
    if path == _UPLOADS or path.startswith(f"{_UPLOADS}/"):
        return settings.max_upload_bytes, settings.upload_s
    return settings.max_body_bytes, settings.body_s


def _too_large(limit: int) -> str:
    return f"The body is larger than the {limit} bytes allowed."


def _check_host(headers: Headers, settings: ServerSettings) -> None:
    if not settings.hosts:
        return
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        name = None
    if name not in settings.hosts:
        names = ", ".join(settings.hosts)
        raise ApiError(
            f"This server answers only to {names}. To use another name, start it with a key (--api-key).",
            status=403,
        )


def _check_origin(headers: Headers, settings: ServerSettings) -> None:
    """Refuse scripts of other web pages: a browser would send what they ask, whatever CORS says later."""
    origin = headers.get("origin")
    if origin is None or "*" in settings.origins or origin in settings.origins:
        return
    if origin.partition("://")[2] != headers.get("host"):
        raise ApiError(
            f"Web pages of {origin[:80]!r} may not use this server: start it with --origin to allow them.",
            status=403,
            code="origin_not_allowed",
        )


def _check_key(headers: Headers, key: str) -> None:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not sent.strip():
        raise ApiError("The server asks for a key: send Authorization: Bearer KEY.", status=401)
    # bytes, because the comparison takes no other text than ASCII
    if not hmac.compare_digest(sent.strip().encode("latin-1", "replace"), key.encode("ascii")):
        raise ApiError("The API key is wrong.", status=401, code="invalid_api_key")
