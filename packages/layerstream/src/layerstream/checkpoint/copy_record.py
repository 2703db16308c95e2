"""What a folder of copied files notes about itself: which file it has from where, and what is unfinished.

Room: bytes. The note is a small JSON file in the folder. Whoever holds the folder's lock may change it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .remote import RemoteFile, is_small_file

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing stops two processes from copying one model
    fcntl = None  # type: ignore[assignment]

RECORD_NAME = "layerstream-fetch.json"
LOCK_NAME = ".layerstream-fetch.lock"
PART_SUFFIX = ".part"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class CopyRecord:
    """The note of one folder.

    A part counts only in the same boot of the machine: after a power failure its last bytes may be zeros.
    Files of different listings may be of different models, so the copy is whole by one listing or not at all.
    """

    def __init__(self, folder: Path) -> None:
        """Read the note; a missing or broken one says nothing, and every file is copied again."""
        self._path = folder / RECORD_NAME
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._parts: dict[str, Any] = {}
        self._listed: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError, KeyError):
            noted = json.loads(self._path.read_bytes())
            files, parts, listed = noted["files"], noted["parts"], noted["listed"]
            if all(isinstance(each, dict) for each in (files, parts, listed)):
                self._files, self._parts, self._listed = files, parts, listed

    @property
    def names(self) -> tuple[str, ...]:
        """The files that were copied whole, and those that were begun."""
        return tuple(dict.fromkeys((*self._files, *self._parts)))

    def has(self, file: RemoteFile) -> bool:
        """Return whether the whole of this very file is in the folder."""
        return self._has(file.name, _as_noted(file))

    def is_whole(self, needed: Iterable[str]) -> bool:
        """Return whether the small files and `needed` are all there as the last listing described them.

        A file that the listing does not have would be read all the same, so none may be left.
        """
        if any(name not in self._listed for name in self.names):
            return False
        small = {name for name in self._listed if is_small_file(name)} - {RECORD_NAME}
        return all(self._has(name, self._listed.get(name)) for name in small.union(needed))

    def part_bytes(self, file: RemoteFile) -> int:
        """Return how many bytes of this very file an earlier copy left; 0 if they cannot be trusted."""
        if file.size is None or self._parts.get(file.name) != {**_as_noted(file), "boot": _boot_id()}:
            return 0
        with suppress(OSError):
            num_bytes = part_of(self._folder / file.name).stat().st_size
            return num_bytes if num_bytes <= file.size else 0
        return 0

    def note_listing(self, listed: Mapping[str, RemoteFile]) -> None:
        """Note what the folder is to become; to be called before the first of its files changes."""
        described = {name: _as_noted(file) for name, file in listed.items()}
        if described != self._listed:
            self._listed = described
            self._write()

    def begin(self, file: RemoteFile) -> None:
        """Note that a part of `file` is there from now on."""
        self._parts[file.name] = {**_as_noted(file), "boot": _boot_id()}
        self._files.pop(file.name, None)
        self._write()

    def finish(self, file: RemoteFile) -> None:
        """Note that `file` is whole."""
        self._parts.pop(file.name, None)
        self._files[file.name] = _as_noted(file)
        self._write()

    def remove(self, name: str) -> None:
        """Remove a file, whole or begun, that its folder does not have any more."""
        for path in (self._folder / name, part_of(self._folder / name)):
            path.unlink(missing_ok=True)
        self._files.pop(name, None)
        self._parts.pop(name, None)
        self._write()

    def _has(self, name: str, noted: dict[str, Any] | None) -> bool:
        path = self._folder / name
        if noted is None or self._files.get(name) != noted or not path.is_file():
            return False
        return noted["size"] is None or path.stat().st_size == noted["size"]

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        noted = {"listed": self._listed, "files": self._files, "parts": self._parts}
        new.write_text(json.dumps(noted, indent=1))
        os.replace(new, self._path)


def part_of(path: Path) -> Path:
    """Return where a file grows until it is whole."""
    return path.with_name(path.name + PART_SUFFIX)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which one process or thread has at a time; the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which releases the lock, as the end of the process would


def _as_noted(file: RemoteFile) -> dict[str, Any]:
    return {"size": file.size, "tag": file.tag}


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
