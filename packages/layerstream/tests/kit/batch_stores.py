"""A store of batches, a clock that only tests move, and input files.

Test kit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.store import BatchStore
from layerstream.server.batches.values import StoredBatch, StoredFile

CHAT = "/v1/chat/completions"


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """Return an empty folder that does not wait for a disk, where the system has one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class StoreKit:
    """Opens stores on one folder, and fills them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.settings = BatchSettings()
        self.store = self._open()

    def _open(self) -> BatchStore:
        return BatchStore(self.folder, self.settings, clock=self.clock)

    def reopen(self, settings: BatchSettings | None = None) -> BatchStore:
        """Close the store and open it anew."""
        self.store.close()
        self.settings = settings or self.settings
        self.store = self._open()
        return self.store

    def line(self, name: str, **changes: Any) -> dict[str, Any]:
        """Return a good line of an input file, with some keys changed."""
        body = {"model": "m", "messages": [{"role": "user", "content": name}]}
        return {"custom_id": name, "method": "POST", "url": CHAT, "body": body} | changes

    def input_bytes(self, lines: list[dict[str, Any]]) -> bytes:
        """Return lines as the bytes of an input file."""
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def upload(self, contents: bytes, name: str = "input.jsonl") -> StoredFile:
        """Keep an uploaded file."""
        with self.store.files.new_file() as new:
            new.write(contents)
            return self.store.files.keep_upload(new, name)

    def new_batch(self, contents: bytes, **changes: Any) -> StoredBatch:
        """Create a batch whose input was not checked yet."""
        values = {
            "input_file_id": self.upload(contents).id,
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        return self.store.batches.create(**(values | changes))

    def running_batch(self, *names: str) -> StoredBatch:
        """Create a batch with good lines, and check its input."""
        batch = self.new_batch(self.input_bytes([self.line(name) for name in names]))
        self.store.batches.validate(batch)
        return self.store.batches.get(batch.id)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the lines of an output or error file; none if there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.store.files.path(file_id).read_bytes().splitlines()]

    def names_on_disk(self) -> set[str]:
        """Return the names of all files that clients could ask for."""
        return {path.name for path in (self.folder / "files").iterdir()}
