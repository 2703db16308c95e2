"""The server on a real port: slow and silent clients, limits of connections, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from kit.fake_service import FakeService
from kit.http_server import running_server, server_process

from layerstream.errors import PlanError
from layerstream.server.app import build_app
from layerstream.server.run import ServingOptions, listen, serve
from layerstream.server.settings import ServerSettings

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost"])

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
WAIT_S = 30


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S)


def everything_from(connection: socket.socket) -> bytes:
    """Return what a server sends until it closes the connection."""
    got = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            got += part
    return got


def until(connection: socket.socket, end: bytes) -> bytes:
    """Return what a server sends, up to a certain end."""
    got = b""
    while not got.endswith(end):
        part = connection.recv(65536)
        assert part, got
        got += part
    return got


def drip(connection: socket.socket, piece: bytes) -> bytes:
    """Send a piece now and then until the server closes the connection; return what it sends meanwhile."""
    got = b""
    connection.settimeout(0.02)
    with suppress(ConnectionError):
        while True:
            connection.sendall(piece)
            with suppress(TimeoutError):
                part = connection.recv(65536)
                got += part
                if not part:
                    break
    return got


def post_head(length: int) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_client_that_sends_no_whole_request_loses_its_connection(sent):
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())
        with running_server(app, service, header_s=0.2) as address, connect(address) as connection:
            connection.sendall(sent)
            assert everything_from(connection) == b""


def test_client_that_drips_headers_on_a_used_connection_loses_it():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())
        with running_server(app, service, header_s=1.0) as address, connect(address) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert until(connection, b"}").startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
            assert drip(connection, b"x") == b""


def test_slow_body_is_a_408_and_the_connection_ends():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(body_s=0.2))
        with running_server(app, service) as address, connect(address) as connection:
            connection.sendall(post_head(100) + b'{"messages"')
            got = everything_from(connection)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "body_too_slow"


def test_refused_body_that_never_ends_loses_its_connection():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(max_body_bytes=100))
        with running_server(app, service, header_s=1.0) as address, connect(address) as connection:
            chunked = post_head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            connection.sendall(chunked + b"80\r\n" + b"x" * 128 + b"\r\n")
            assert until(connection, b"}}").startswith(b"HTTP/1.1 413")
            assert drip(connection, b"1\r\nx\r\n") == b""


def test_client_that_leaves_within_its_body_costs_nothing():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(max_open_requests=1))
        with running_server(app, service) as address:
            for _ in range(3):
                with connect(address) as connection:
                    connection.sendall(post_head(100) + b"{")
            assert httpx.post(address + CHAT, json=HELLO, timeout=WAIT_S).status_code == 200
    assert app.state.open_requests.count == 0


def test_slow_clients_do_not_keep_others_waiting():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(max_open_requests=2))
        with running_server(app, service) as address:
            slow = [connect(address) for _ in range(20)]
            try:
                for connection in slow:
                    connection.sendall(post_head(100) + b"{")
                assert httpx.post(address + CHAT, json=HELLO, timeout=WAIT_S).status_code == 200
            finally:
                for connection in slow:
                    connection.close()


def test_client_that_takes_nothing_of_a_stream_loses_its_request_and_its_connection(caplog):
    # so many sweeps that the buffers are full, and too few for the whole answer
    with FakeService(context_tokens=10**6, replies={"hello": "a" * 29_000}, sweeps=20_000) as service:
        app = build_app(service, settings=ServerSettings(send_s=0.2))
        with running_server(app, service, send_s=0.2) as address, socket.socket() as connection:
            # so that little is enough to fill it
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((urlsplit(address).hostname, urlsplit(address).port))
            body = json.dumps({**HELLO, "max_tokens": 30_000, "stream": True}).encode()
            connection.sendall(post_head(len(body)) + body)
            service.wait_until(lambda status: status.cancelled == 1)
    # what is left of a connection would be waited for in vain
    assert "graceful shutdown exceeded" not in caplog.text


def test_more_connections_than_allowed_are_refused():
    with FakeService(sweeps=0) as service:
        app = build_app(service, settings=ServerSettings())
        with running_server(app, service, max_connections=3) as address:
            idle = [connect(address) for _ in range(3)]
            try:
                assert httpx.get(f"{address}/health", timeout=WAIT_S).status_code == 503
            finally:
                for connection in idle:
                    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/nine\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5_000_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_400_and_the_server_goes_on(sent):
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings())
        with running_server(app, service) as address:
            with connect(address) as connection:
                with suppress(ConnectionError):
                    connection.sendall(sent)
                got = everything_from(connection)
            assert httpx.get(f"{address}/health", timeout=WAIT_S).status_code == 200
    assert got == b"" or got.startswith(b"HTTP/1.1 400")


def test_draining_server_finishes_what_is_open_and_then_ends():
    with FakeService(sweeps=0) as service:
        app = build_app(service, settings=ServerSettings())
        answers: list[httpx.Response] = []
        with running_server(app, service) as address:
            thread = threading.Thread(
                target=lambda: answers.append(httpx.post(address + CHAT, json=HELLO, timeout=WAIT_S))
            )
            thread.start()
            service.wait_until(lambda status: status.waiting == 1)
            app.state.open_requests.is_draining = True
            assert httpx.post(address + CHAT, json=HELLO, timeout=WAIT_S).status_code == 503
            service.allow_sweeps(100)
            thread.join()
    assert answers[0].status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", timeout=WAIT_S)


def send_in_background(address: str) -> tuple[threading.Thread, list[httpx.Response | httpx.HTTPError]]:
    """Send a request in a thread; its answer or error will be in the list."""
    got: list[httpx.Response | httpx.HTTPError] = []

    def send() -> None:
        try:
            got.append(httpx.post(address + CHAT, json=HELLO, timeout=WAIT_S))
        except httpx.HTTPError as error:
            got.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    until_metric(address, "layerstream_requests_waiting 1.0")
    return thread, got


def until_metric(address: str, line: str) -> None:
    while line not in httpx.get(f"{address}/metrics", timeout=WAIT_S).text.splitlines():
        pass


def until_draining(address: str) -> None:
    while httpx.get(f"{address}/health", timeout=WAIT_S).status_code != 503:
        pass


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_open_requests_finish_and_refuses_new_ones(sign):
    with server_process("30") as (process, address):
        thread, got = send_in_background(address)
        process.send_signal(sign)
        until_draining(address)
        refused = httpx.post(address + CHAT, json=HELLO, timeout=WAIT_S)
        process.stdin.write("100\n")
        process.stdin.flush()
        thread.join()
        assert process.wait(WAIT_S) == 0
        assert process.stdout.read() == "closed after 1 answers\n"
        assert "Traceback" not in process.stderr.read()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "closing"
    assert got[0].status_code == 200


def test_open_requests_get_an_error_when_their_time_is_over():
    with server_process("0.2") as (process, address):
        thread, got = send_in_background(address)
        process.terminate()
        thread.join()
        assert process.wait(WAIT_S) == 0
        assert process.stdout.read() == "closed after 0 answers\n"
        assert "Traceback" not in process.stderr.read()
    assert got[0].status_code == 503
    assert got[0].json()["error"]["code"] == "closing"


def test_second_signal_ends_the_server_at_once():
    with server_process("3600") as (process, address):
        thread, got = send_in_background(address)
        process.terminate()
        until_draining(address)
        process.terminate()
        assert process.wait(WAIT_S) == 0
        thread.join()
        assert process.stdout.read() == "closed after 0 answers\n"
    assert isinstance(got[0], httpx.RemoteProtocolError | httpx.ReadError)


def test_idle_server_ends_at_the_first_signal_even_with_idle_connections():
    with server_process("3600") as (process, address), connect(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        process.terminate()
        assert process.wait(WAIT_S) == 0
        assert "Traceback" not in process.stderr.read()


def test_small_packets_are_not_held_back():
    with (
        listen("127.0.0.1", 0, ServingOptions()) as listener,
        socket.create_connection(listener.getsockname(), timeout=WAIT_S),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_address_in_use_is_one_clear_error_and_the_service_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as taken, FakeService() as service:
        port = taken.getsockname()[1]
        app = build_app(service, settings=ServerSettings())
        with pytest.raises(
            PlanError, match=f"cannot listen at 127.0.0.1, port {port}: Address already in use"
        ):
            serve(app, service, port=port)
        assert service.is_closed


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 70000, "70000 is not a port"),
        ("192.0.2.1", 0, "cannot listen at 192.0.2.1"),
        ("x" * 300, 0, "cannot listen"),
    ],
)
def test_address_that_cannot_be_used_is_refused(host, port, words):
    with pytest.raises(PlanError, match=words):
        listen(host, port, ServingOptions())
