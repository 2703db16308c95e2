"""Files that are still being copied to this machine: which of their bytes are there, and waiting for others.

Room: bytes. Whoever copies a file in this process announces it here; whoever reads one asks here first. A
file that nobody announced is there, or will fail when it is opened.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import LayerstreamError, ReadFailedError, StreamClosedError

_LOOK_AGAIN_S = 0.2
"""How often a waiting thread asks whether whoever wants the bytes has given up."""


@dataclass(slots=True)
class _Arriving:
    """A file on its way: where it grows, how many bytes are there, and what stopped it."""

    part: str
    num_bytes: int = 0
    error: LayerstreamError | None = None


_files: dict[str, _Arriving] = {}
_changed = threading.Condition()


def announce(path: Path, part: Path) -> None:
    """Say that `path` will come, and grows as `part` until then."""
    with _changed:
        _files[str(path)] = _Arriving(str(part))


def announce_bytes(path: Path, num_bytes: int) -> None:
    """Say how many bytes of `path`, from its start, are in its part; unannounced files are ignored."""
    with _changed:
        if str(path) in _files:
            _files[str(path)].num_bytes = num_bytes
            _changed.notify_all()


def announce_end(path: Path) -> None:
    """Say that `path` is there, whole, under its own name."""
    with _changed:
        _files.pop(str(path), None)
        _changed.notify_all()


def announce_failure(path: Path, error: LayerstreamError | None) -> None:
    """Say that no more of `path` will come, with the reason; None if the copy was stopped."""
    with _changed:
        if str(path) in _files:
            _files[str(path)].error = error or StreamClosedError(
                f"the copy of {path} was stopped; load the model again and it goes on"
            )
            _changed.notify_all()


def wait_for(path: str, end: int | None, gave_up: Callable[[], bool] = lambda: False) -> None:
    """Wait until the bytes of a file up to `end` are there; return at once for files that are not on the way.

    Args:
        path: the file, under the name that it will have.
        end: the place after the last byte; None waits for the whole file.
        gave_up: asked now and then; True ends the wait.

    Raises:
        ReadFailedError: the copy failed; with `path`.
        StreamClosedError: the copy was stopped, or the reader gave up.
    """
    if path not in _files:
        return
    with _changed:
        while (file := _files.get(path)) is not None:
            if end is not None and file.num_bytes >= end:
                return
            if isinstance(file.error, StreamClosedError):
                raise StreamClosedError(*file.error.args)
            if file.error is not None:
                raise ReadFailedError(
                    f"{path} did not arrive whole: {file.error}", path=path, offset=file.num_bytes
                ) from file.error
            if gave_up():
                raise StreamClosedError(f"nobody waits any more for {path}")
            _changed.wait(_LOOK_AGAIN_S)


def open_arriving(path: str, opener: Callable[[str], int]) -> int:
    """Open a file that is there, or of which a part is; the descriptor stays valid when it becomes whole."""
    try:
        return opener(path)
    except FileNotFoundError:
        file = _files.get(path)
        if file is None:
            # It may have become whole, and lost its part, since the first try.
            return opener(path)
    try:
        return opener(file.part)
    except FileNotFoundError:
        return opener(path)


def is_arriving(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is on its way, or its copy was stopped."""
    return str(path) in _files
