"""A small Hub with one data set, on a local port: what `datasets` asks of the real one, and its refusals.

Test kit. Uses the standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .local_server import answering


@dataclass(slots=True)
class DatasetHub:
    """One data set of a Hub.

    Attributes:
        name: its id.
        revisions: the folder and the commit of each branch and tag.
        is_gated: nobody may read it.
        address: the Hub's URL.
        requests: method and path of every request.
    """

    name: str
    revisions: dict[str, tuple[str, Path]]
    is_gated: bool = False
    address: str = ""
    requests: list[str] = field(default_factory=list)

    def revision(self, name: str) -> tuple[str, Path] | None:
        """Return the commit and the folder of a branch, a tag or a commit."""
        return next((each for ref, each in self.revisions.items() if name in (ref, each[0])), None)


@contextmanager
def dataset_hub(hub: DatasetHub) -> Iterator[DatasetHub]:
    """Serve a Hub at a local address, which is an `HF_ENDPOINT`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with answering(handler) as hub.address:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: DatasetHub

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path == "/":
            self._answer(200, b"")
            return
        name = self.hub.name
        if path == f"/api/datasets/{name}":
            path += "/revision/main"
        for prefix, serve in (
            (f"/datasets/{name}/resolve/", self._file),
            (f"/api/datasets/{name}/revision/", self._revision),
            (f"/api/datasets/{name}/tree/", self._tree),
            (f"/api/datasets/{name}/paths-info/", self._paths),
        ):
            if path.startswith(prefix):
                if self.hub.is_gated:
                    self._refuse(403, "GatedRepo")
                    return
                revision, _, rest = path.removeprefix(prefix).partition("/")
                found = self.hub.revision(revision)
                if found is None:
                    self._refuse(404, "RevisionNotFound")
                else:
                    serve(*found, rest)
                return
        self._refuse(401 if path.startswith(("/datasets/", "/api/datasets/")) else 404, "RepoNotFound")

    def _file(self, commit: str, folder: Path, rest: str) -> None:
        path = folder / rest
        if not path.is_file():
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        data = path.read_bytes()
        self._answer(200, data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _revision(self, commit: str, folder: Path, rest: str) -> None:
        files = [{"rfilename": str(path.relative_to(folder))} for path in folder.rglob("*.*")]
        self._json({"id": self.hub.name, "sha": commit, "siblings": files, "private": False, "tags": []})

    def _tree(self, commit: str, folder: Path, rest: str) -> None:
        if not (folder / rest).is_dir():
            self._refuse(404, "EntryNotFound")
            return
        paths = (
            (folder / rest).rglob("*") if "recursive=true" in self.path.lower() else (folder / rest).iterdir()
        )
        self._json([_entry(folder, path) for path in sorted(paths)])

    def _paths(self, commit: str, folder: Path, rest: str) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"]
        self._json([_entry(folder, folder / path) for path in asked if (folder / path).exists()])

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(root: Path, path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"type": "directory", "path": str(path.relative_to(root)), "oid": "0" * 40}
    data = path.read_bytes()
    place = str(path.relative_to(root))
    return {"type": "file", "path": place, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
