"""Read and write the results file: one measurement per line of JSON, safe against being killed at any moment.

A line counts once its last brace is written; a torn last line is cut off when the file is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import ResultsError
from .measurement import Measurement

FILE_NAME = "results.jsonl"


def read_results(folder: str | Path) -> list[Measurement]:
    """Return the measurements in `folder`, only the last one of each case. Nothing is changed.

    Raises:
        ResultsError: the folder holds no results, or a line is not a measurement of this schema version.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise ResultsError(f"no results in {folder}: there is no {FILE_NAME}")
    measurements, _ = _parse(path.read_bytes(), path)
    return list(measurements.values())


class ResultsFile:
    """The results in a folder, open for appending by one process at a time. Use it as a context manager.

    Attributes:
        path: the file.
        measurements: every measurement in the file, by case key.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open, lock and repair the results of `folder`, which is created if missing.

        Raises:
            ResultsError: another process is writing there, or a line is not a measurement of this schema
                version.
            OSError: the folder cannot be written.
        """
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            content = self.path.read_bytes()
            self.measurements, keep_bytes = _parse(content, self.path)
            os.ftruncate(self._fd, keep_bytes)
            if keep_bytes and content[keep_bytes - 1 : keep_bytes] != b"\n":
                os.write(self._fd, b"\n")
            _sync_folder(self.path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(
                f"another run is writing to {self.path}: wait for it, or choose another folder"
            ) from error

    def add(self, measurement: Measurement) -> None:
        """Append one measurement; it is on disk when this returns."""
        remaining = memoryview(measurement.to_json().encode() + b"\n")
        while remaining:
            remaining = remaining[os.write(self._fd, remaining) :]
        os.fsync(self._fd)
        self.measurements[measurement.case.key] = measurement

    def __enter__(self) -> ResultsFile:
        """Return the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and release the lock."""
        os.close(self._fd)


def _parse(content: bytes, path: Path) -> tuple[dict[str, Measurement], int]:
    """Return the measurements by key, and how many bytes of `content` hold them."""
    measurements: dict[str, Measurement] = {}
    keep_bytes = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if line.strip():
            try:
                measurement = Measurement.from_json(line.decode())
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if not line.endswith(b"\n"):
                    break
                raise ResultsError(
                    f"{path} line {number} is not a result of this version: {error}; choose another folder"
                ) from error
            # remove the old one first, so that the newest also comes last in order
            measurements.pop(measurement.case.key, None)
            measurements[measurement.case.key] = measurement
        keep_bytes += len(line)
    return measurements, keep_bytes


def _sync_folder(folder: Path) -> None:
    # makes the file's directory entry durable; not every file system supports it
    with _opened(folder) as descriptor, contextlib.suppress(OSError):
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
