"""The HTTP app over a fake service: in this process without a socket, in a thread, and as a process.

Test kit.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from layerstream.server.run import DrainingServer, ServingOptions, listen

ADDRESS = "http://server"
_PATIENCE_S = 30.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def client_of(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """Return a client that calls an app without a socket; unforeseen errors become its answers."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=ADDRESS, timeout=_PATIENCE_S, **options)


@contextmanager
def running_server(app: FastAPI, service: Any, **options: Any) -> Iterator[str]:
    """Serve an app at a free port in a thread and yield its address; drain and close it in the end."""
    limits = ServingOptions(**options)
    is_ready = threading.Event()
    addresses: list[str] = []

    def on_ready(address: str) -> None:
        addresses.append(address)
        is_ready.set()

    with listen("127.0.0.1", 0, limits) as listener:
        server = DrainingServer(app, service, listener, limits, on_ready)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http-server")
        thread.start()
        try:
            assert is_ready.wait(_PATIENCE_S), "the server did not start"
            yield addresses[0]
        finally:
            server.drain()
            thread.join()


@contextmanager
def server_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve a fake in a process of its own and yield it and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kit.serve_fake", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, process.communicate()[1]
        yield process, address
    finally:
        process.kill()
        process.communicate()
