"""The folder of the store: who may use it, and files that appear whole or not at all.

Nothing that a client sends becomes part of a path: files are named by their ids.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .errors import BatchStoreError

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing stops two servers from using one folder
    fcntl = None  # type: ignore[assignment]

_OURS = re.compile(r"file-[0-9a-f]{32}(\.part)?")
_DATABASE = "batches.sqlite"


class StoreFolder:
    """A folder that belongs to this process. Its owner must close it.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Create the folder if there is none, and lock it.

        Raises:
            BatchStoreError: another server uses it, or it cannot be written.
        """
        self.path = path
        self._files = path / "files"
        self._lock = -1
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            # prompts and answers are nobody else's business
            os.chmod(self._files, 0o700)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            os.close(os.open(self.database_path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            self.close()
            raise BatchStoreError(
                f"cannot keep batches in {path}: {error.strerror or error}; give a folder that can be written"
            ) from error
        self._claim()

    @property
    def database_path(self) -> Path:
        """Where the database is."""
        return self.path / _DATABASE

    def path_of(self, file_id: str) -> Path:
        """Return where a file is; the id must be one that the store made."""
        assert _OURS.fullmatch(file_id), "an id that the store did not make"
        return self._files / file_id

    def new_file(self) -> NewFile:
        """Return a file to write, which is not there for others until it is published."""
        return NewFile(self._files / f"file-{secrets.token_hex(16)}")

    def remove(self, file_id: str) -> None:
        """Remove a file, if it is there."""
        self.path_of(file_id).unlink(missing_ok=True)

    def remove_all_but(self, file_ids: set[str]) -> None:
        """Remove what a server that was killed has left: files without a row, and unfinished ones."""
        for path in self._files.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in file_ids:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _claim(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            reason = (
                "another server uses this folder: stop it, or give another folder"
                if isinstance(error, BlockingIOError)
                else f"the folder cannot be locked ({error.strerror or error}): give one on a local disk"
            )
            raise BatchStoreError(f"cannot keep batches in {self.path}: {reason}") from error


class NewFile:
    """A file that is being written. It vanishes at the end of the `with` block unless it is kept.

    Attributes:
        id: the name it will have.
        num_bytes: what was written so far.
    """

    def __init__(self, path: Path) -> None:
        """Create the file under a temporary name."""
        self.id = path.name
        self.num_bytes = 0
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._is_kept = False
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20)

    def write(self, piece: bytes) -> None:
        """Append `piece`."""
        self._file.write(piece)
        self.num_bytes += len(piece)

    def publish(self) -> None:
        """Put the file on disk under its own name. Without a row that names it, it is still nobody's."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self._part, self._path)
        _sync_folder(self._path.parent)

    def keep(self) -> None:
        """Let the file stay: a row names it now."""
        self._is_kept = True

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_kept:
            return
        # a full disk may refuse the last bytes again; they are not wanted any more
        with suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    # makes the names durable; not every file system supports it
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
