"""Copy one file of a remote folder to this machine: on from where it stopped, checked, then under its name.

Room: bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError, FetchError, ShardCorruptError, StreamClosedError
from ..spec.sizes import format_bytes
from .arrivals import announce_bytes, announce_end
from .copy_record import CopyRecord, part_of
from .header import load_header
from .remote import RemoteChangedError, RemoteFile, RemoteFolder

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""How long to wait before each new try; a try that brings bytes starts over."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that have just been written."""


def check_space(folder: Path, files: Sequence[RemoteFile], record: CopyRecord) -> None:
    """Check that the disk has room for what is not there yet.

    Raises:
        FetchError: it has not; with `needed_bytes` and `free_bytes`.
    """
    needed = sum((file.size or 0) - record.part_bytes(file) for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _disk_full(folder, needed, free)


class FileCopy:
    """The copy of one file."""

    def __init__(
        self,
        source: RemoteFolder,
        file: RemoteFile,
        folder: Path,
        record: CopyRecord,
        *,
        stop: threading.Event,
        on_bytes: OnBytes,
    ) -> None:
        """Prepare the copy of `file` to `folder`, whose lock must be held.

        Args:
            source: where it comes from.
            file: what is copied.
            folder: where it goes.
            record: the folder's note.
            stop: ends the copy soon after it is set; a later one goes on.
            on_bytes: called after each piece.
        """
        self._source, self._file, self._record = source, file, record
        self._path, self._part = folder / file.name, part_of(folder / file.name)
        self._stop, self._on_bytes = stop, on_bytes
        self._have = 0

    def run(self) -> None:
        """Copy what is missing, check the whole and give it its name.

        Raises:
            CheckpointNotFoundError: the file is gone or access is refused.
            FetchError: the server or the disk failed, or the file changed meanwhile.
            ShardCorruptError: the file's header does not fit its size; with `path`.
            StreamClosedError: `stop` was set.
        """
        try:
            self._have = self._record.part_bytes(self._file)
            if not self._have:
                self._part.unlink(missing_ok=True)
                self._record.begin(self._file)
            self._tell(self._have)
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                self._fill(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._check()
            os.replace(self._part, self._path)
            self._record.finish(self._file)
        except FetchError:
            raise
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise self._cannot_write(error) from error
        announce_end(self._path)

    def _fill(self, descriptor: int) -> None:
        """Append pieces until the file is whole; a failed connection is tried again."""
        failures = 0
        while True:
            before = self._have
            problem = self._append_all(descriptor)
            if problem is None:
                return
            if isinstance(problem, RemoteChangedError) or self._file.size is None:
                raise problem
            failures = 0 if self._have > before else failures + 1
            if failures > len(WAITS_S):
                raise problem
            self._stop.wait(WAITS_S[max(0, failures - 1)])
            self._check_stopped()

    def _append_all(self, descriptor: int) -> FetchError | None:
        """Append what comes over one connection, and return why the file is not whole; None if it is.

        What the disk refuses is raised: a new connection does not help.
        """
        pieces = self._source.stream(self._file, self._have)
        while True:
            try:
                data = next(pieces, None)
            except FetchError as error:
                return error
            if data is None:
                break
            self._append(descriptor, data)
        if self._file.size is None or self._have >= self._file.size:
            return None
        return FetchError(
            f"{self._source.url}/{self._file.name} ended after {self._have} of {self._file.size} "
            "bytes; start again and it goes on"
        )

    def _append(self, descriptor: int, data: bytes) -> None:
        self._check_stopped()
        view = memoryview(data)
        while view:
            try:
                written = os.write(descriptor, view)
            except OSError as error:
                raise self._cannot_write(error) from error
            view = view[written:]
        self._have += len(data)
        self._tell(len(data))

    def _tell(self, num_bytes: int) -> None:
        announce_bytes(self._path, self._have)
        if num_bytes:
            self._on_bytes(num_bytes)

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise StreamClosedError(
                f"the copy of {self._file.name} was stopped; start it again and it goes on"
            )

    def _check(self) -> None:
        """Check what arrived; a wrong file is removed, so that the next copy starts it anew."""
        try:
            self._check_whole()
        except CheckpointError:
            self._part.unlink(missing_ok=True)
            raise

    def _check_whole(self) -> None:
        url = f"{self._source.url}/{self._file.name}"
        if self._file.size is not None and self._have != self._file.size:
            raise FetchError(f"{url} gave {self._have} bytes in place of {self._file.size}; start again")
        now = self._source.look(self._file.name)
        if now != self._file:
            raise RemoteChangedError(f"{url} changed while it was copied; start again for the new one")
        if not self._file.name.endswith(".safetensors"):
            return
        try:
            load_header(self._part)
        except ShardCorruptError as error:
            reason = str(error).replace(str(self._part), url)
            raise ShardCorruptError(reason, path=str(self._path)) from error

    def _cannot_write(self, error: OSError) -> FetchError:
        folder = self._part.parent
        needed = (self._file.size or 0) - self._have
        if error.errno == errno.EDQUOT:
            return FetchError(
                f"your quota on the disk of {folder} is used up, and {format_bytes(needed)} are still to "
                "come; free some space and start again, or give another folder: what is there already stays",
                needed_bytes=max(1, needed),
            )
        if error.errno == errno.ENOSPC:
            free = 0
            with suppress(OSError):
                free = shutil.disk_usage(folder).free
            return _disk_full(folder, needed, free)
        return FetchError(f"cannot write to {folder}: {error.strerror or error}; give another folder")


def _disk_full(folder: Path, needed: int, free: int) -> FetchError:
    return FetchError(
        f"the disk of {folder} is too full: {format_bytes(needed)} are still to come and "
        f"{format_bytes(free)} are free; free some space and start again, or give another folder: what is "
        "there already stays",
        needed_bytes=max(1, needed),
        free_bytes=free,
    )
