"""A file of lines that one process at a time may change: lines are appended whole, or all replaced at once.

It does not know what the lines mean. Whoever opens it locks it. The lock is on the file itself, so a file
that takes another's place is locked before it does, and whoever opened the old one looks again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from ..errors import JobError
from .jobs import refuse_special_file

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing stops two processes from running one job
    fcntl = None  # type: ignore[assignment]

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MOST_BUFFERED_BYTES = 1 << 20


class LockedFile:
    """A locked file, open for reading and appending. Its owner must close it.

    Attributes:
        path: where it is, links resolved: a file that replaces it must not replace a link to it.
        descriptor: the open file; another one after `replace`.
    """

    def __init__(self, path: Path) -> None:
        """Open or create `path`, and lock it.

        Raises:
            JobError: it cannot be opened, is not a plain file, or another process has locked it.
        """
        self._shown_path = path
        self.path = Path(os.path.realpath(path))
        self.descriptor = -1
        while self.descriptor < 0:
            self._open()

    def append(self, line: bytes) -> None:
        """Append `line`; it is on disk when this returns.

        Raises:
            JobError: the disk refused it.
        """
        try:
            if os.write(self.descriptor, line) != len(line):
                raise OSError("the disk is full")
            os.fsync(self.descriptor)
        except OSError as error:
            raise self._cannot_write(error) from error

    def truncate(self, num_bytes: int) -> None:
        """Cut off everything after `num_bytes`."""
        if os.fstat(self.descriptor).st_size > num_bytes:
            os.ftruncate(self.descriptor, num_bytes)
            os.fsync(self.descriptor)

    def replace(self, lines: Iterable[bytes]) -> None:
        """Put `lines` in place of the contents: after a crash, the file holds the old ones or the new ones.

        Raises:
            JobError: the disk refused it; the file is as it was.
        """
        try:
            new, descriptor = self._write_beside(lines)
            os.replace(new, self.path)
            self._sync_folder()
        except OSError as error:
            raise self._cannot_write(error) from error
        os.close(self.descriptor)
        self.descriptor = descriptor

    def keep_lines(self, lines: Iterable[bytes]) -> Path:
        """Write `lines` to a new file next to this one, with a number at the end; return its path.

        Raises:
            JobError: the disk refused it.
        """
        try:
            new, descriptor = self._write_beside(lines)
            os.close(descriptor)
            kept = self._new_name(new)
            new.unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise self._cannot_write(error) from error
        return kept

    def keep_contents(self) -> Path:
        """Give the contents, as they are, a second name with a number at the end; return its path.

        Call `replace` next: until then, both names are one file.

        Raises:
            JobError: the disk refused it.
        """
        try:
            return self._new_name(self.path)
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Close the file and release the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _open(self) -> None:
        refuse_special_file(
            self.path,
            f"cannot write results to {self._shown_path}",
            "give the name of a file for the results",
        )
        # a pipe that appears here after all must not block
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise JobError(
                f"cannot open the results {self._shown_path}: {error.strerror or error}"
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise JobError(f"cannot write results to {self._shown_path}: this is not a plain file")
            self._lock(descriptor)
            if self._is_current(descriptor):
                self.descriptor = descriptor
        finally:
            if self.descriptor < 0:
                os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JobError(
                f"another process is writing to the results {self._shown_path}: wait for it, or give another "
                "file"
            ) from error

    def _is_current(self, descriptor: int) -> bool:
        """Return whether the path still leads to this file: the last owner may have replaced it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _write_beside(self, lines: Iterable[bytes]) -> tuple[Path, int]:
        """Write `lines` to a file next to this one, synced and locked; return its path and descriptor."""
        # only the owner of the lock writes there: what is there is left from a process that was killed
        path = self.path.with_name(f".{self.path.name}.new")
        path.unlink(missing_ok=True)
        descriptor = os.open(path, _NEW_FILE, 0o600)
        try:
            os.chmod(path, stat.S_IMODE(os.fstat(self.descriptor).st_mode))
            self._lock(descriptor)
            with os.fdopen(os.dup(descriptor), "wb", buffering=_MOST_BUFFERED_BYTES) as writer:
                writer.writelines(lines)
            os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return path, descriptor

    def _new_name(self, source: Path) -> Path:
        """Give `source` the first name with a number that is free, next to this file."""
        for number in count(1):
            name = self.path.with_name(f"{self.path.name}.{number}")
            try:
                # unlike a renaming, this overwrites nothing and leaves no moment without the old name
                os.link(source, name, follow_symlinks=False)
            except FileExistsError:
                continue
            except OSError:
                # this file system has no second names
                if os.path.lexists(name):
                    continue
                source.rename(name)
            return name
        raise AssertionError("numbers do not end")

    def _sync_folder(self) -> None:
        # makes the names durable; not every file system supports it
        with suppress(OSError):
            descriptor = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _cannot_write(self, error: OSError) -> JobError:
        return JobError(
            f"cannot write to the results {self._shown_path}: {error.strerror or error}; "
            "start again to continue"
        )
