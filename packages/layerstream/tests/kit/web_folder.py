"""A folder on a web server that can be slow, break off, lie and refuse.

Test kit. Uses the standard library only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from .local_server import answering

_PIECE_BYTES = 16 * 1024


@dataclass(slots=True)
class WebFolder:
    """A folder that is served, and how.

    Attributes:
        folder: the files.
        address: its URL.
        takes_ranges: False ignores `Range`, as simple servers do.
        takes_head: False refuses HEAD.
        tells_sizes: False leaves out `Content-Length`.
        refuses: the status for every request; 0 answers.
        breaks_after: each answer with more bytes breaks off there; 0 never breaks.
        bytes_per_s: how fast bodies are sent; 0 is as fast as possible.
        before_piece: called with the file's name and the place before each piece of a body.
        requests: method, file and first byte of every request.
    """

    folder: Path
    address: str = ""
    takes_ranges: bool = True
    takes_head: bool = True
    tells_sizes: bool = True
    refuses: int = 0
    breaks_after: int = 0
    bytes_per_s: float = 0.0
    before_piece: Callable[[str, int], None] | None = None
    requests: list[tuple[str, str, int]] = field(default_factory=list)

    def bodies_of(self, name: str) -> list[int]:
        """Return where each body of a file began that was asked for, without single header reads."""
        return [start for method, file, start in self.requests if method == "GET" and file == name]


@contextmanager
def web_folder(folder: Path) -> Iterator[WebFolder]:
    """Serve `folder` at a local address."""
    served = WebFolder(folder)
    handler = type("Handler", (_Handler,), {"served": served})
    with answering(handler) as address:
        served.address = f"{address}/models/tiny"
        yield served


class _Handler(BaseHTTPRequestHandler):
    served: WebFolder

    def do_HEAD(self) -> None:
        if not self.served.takes_head:
            self._answer(405)
            return
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self, *, body: bool) -> None:
        name = self.path.removeprefix("/models/tiny/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked else 0
        self.served.requests.append((self.command, name, start))
        path = self.served.folder / name
        if self.served.refuses or not path.is_file():
            self._answer(self.served.refuses or 404)
            return
        data = path.read_bytes()
        end = len(data)
        if asked and self.served.takes_ranges:
            end = min(end, int(asked.group(2)) + 1) if asked.group(2) else end
            if start >= len(data):
                self._answer(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            start = 0
            self.send_response(200)
        status = path.stat()
        self.send_header("ETag", f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        if self.served.tells_sizes:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            self._send(name, data, start, end)

    def _send(self, name: str, data: bytes, start: int, end: int) -> None:
        began_s = time.monotonic()
        for at in range(start, end, _PIECE_BYTES):
            if self.served.breaks_after and at - start >= self.served.breaks_after:
                self.close_connection = True
                return
            if self.served.before_piece is not None:
                self.served.before_piece(name, at)
            try:
                self.wfile.write(data[at : min(end, at + _PIECE_BYTES)])
            except OSError:  # the client left
                return
            if self.served.bytes_per_s:
                due_s = began_s + (at + _PIECE_BYTES - start) / self.served.bytes_per_s
                time.sleep(max(0.0, due_s - time.monotonic()))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
