"""Run an app with uvicorn: limits for connections, and an end that lets running answers finish.

At the first SIGTERM or SIGINT the server takes no new requests (they get a 503) and waits for those that are
open. After the time for this, or when none is left, it closes the service and ends. A second signal ends it
at once.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import PlanError
from ..uses.serving.protocol import Service
from .guards import OpenRequests

_MAX_HEADER_BYTES = 32 * 1024
_CLOSE_S = 5
_BACKLOG = 128
_PROBE_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How connections are kept and ended.

    Attributes:
        drain_s: seconds that open requests get to finish after the first signal.
        max_connections: how many connections there may be at once; more get a 503.
        keep_alive_s: seconds that a connection may stay open without a request.
        header_s: seconds that the headers of a request may take to arrive.
        send_s: seconds after which a client that takes no data loses its connection.
    """

    drain_s: float = 30.0
    max_connections: int = 512
    keep_alive_s: int = 30
    header_s: float = 10.0
    send_s: float = 60.0


_DEFAULTS = ServingOptions()


def serve(
    app: FastAPI,
    service: Service,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    options: ServingOptions = _DEFAULTS,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serve until a signal ends it, then close the service.

    Args:
        app: an app of `build_app`.
        service: its service; it is closed in the end, also after an error.
        host: the address to listen on; `"127.0.0.1"` for this machine only.
        port: the port; 0 takes any that is free.
        options: limits.
        on_ready: called with the server's address, such as `"http://127.0.0.1:8000"`, once it answers.

    Raises:
        PlanError: the address cannot be used.
    """
    try:
        listener = listen(host, port, options)
        with listener:
            DrainingServer(app, service, listener, options, on_ready).run(sockets=[listener])
    finally:
        service.close()


def listen(host: str, port: int, options: ServingOptions) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        PlanError: the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise PlanError(f"{port} is not a port: give a number from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no address of this machine"
        raise PlanError(f"cannot listen at {host}, port {port}: {reason}; choose another one") from error
    # connections inherit these; asyncio turns the delay of small packets off for other sockets only
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # a client that takes no data, or is no longer there, loses its connection
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _PROBE_S), ("TCP_USER_TIMEOUT", int(options.send_s * 1000))):
        # not every system has them
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


class DrainingServer(uvicorn.Server):
    """A uvicorn that finishes open requests before it ends."""

    def __init__(
        self,
        app: FastAPI,
        service: Service,
        listener: socket.socket,
        options: ServingOptions,
        on_ready: Callable[[str], object] | None = None,
    ) -> None:
        """Prepare to serve an app at a socket that listens."""
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=_punctual(options.header_s),
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=options.max_connections,
            backlog=_BACKLOG,
            timeout_keep_alive=options.keep_alive_s,
            timeout_graceful_shutdown=_CLOSE_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        super().__init__(config)
        self._open: OpenRequests = app.state.open_requests
        self._service, self._on_ready = service, on_ready
        self._address = _address(listener)
        self._drain_s = options.drain_s
        self._drain_until: float | None = None

    def drain(self) -> None:
        """Take no more requests, and end once the open ones have ended or their time is over."""
        self._open.is_draining = True
        self._drain_until = time.monotonic() + self._drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal and end at once at the second; uvicorn calls it for each."""
        if self._drain_until is None:
            self.drain()
        else:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and tell that it answers."""
        await super().startup(sockets)
        if self._on_ready is not None:
            self._on_ready(self._address)

    async def on_tick(self, counter: int) -> bool:
        """Tell whether it is time to end; uvicorn asks ten times a second."""
        if await super().on_tick(counter):
            return True
        if self._drain_until is None:
            return False
        return self._open.count == 0 or time.monotonic() >= self._drain_until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the service, so that what is still open ends with an error, then the connections."""
        if not self.force_exit:
            await asyncio.to_thread(self._service.close)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)


class PunctualH11(H11Protocol):
    """A connection whose requests must arrive in time.

    uvicorn waits for the headers of a first request, or for the rest of a body that was refused, as long as a
    client sends a byte now and then.

    Attributes:
        header_s: the seconds it may take.
    """

    header_s = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take data, and wait for the rest of a request if no request is being answered."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        had_request = self.cycle is not None
        is_answering = had_request and not self.cycle.response_complete
        is_idle = had_request and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_answering or is_idle:
            self._stop_watching()
        elif self._late is None:
            self._late = self.loop.call_later(self.header_s, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _punctual(header_s: float) -> type[PunctualH11]:
    # uvicorn makes the connections itself and takes only their class
    return type("PunctualH11", (PunctualH11,), {"header_s": header_s})


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
