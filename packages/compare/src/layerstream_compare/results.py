"""Read and write the results file: one measurement per line of JSON, safe against being killed at any moment.

A line counts once its last brace is written; a torn last line is cut off when the file is opened again.

A folder holds one experiment: one prompt, one model, one set of settings and versions. Every line says of
which it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from .case import Case
from .errors import ResultsError
from .measurement import Measurement

FILE_NAME = "results.jsonl"

FINGERPRINT = "model_fingerprint"
"""The entry of a measurement's environment that tells the model's contents."""

# What all cases of a folder share; variants, kernels, prompt lengths and rounds may be added later.
_SHARED = (
    "model",
    "prompt",
    "chat",
    "max_new_tokens",
    "dtype",
    "device",
    "budget",
    "host_budget",
    "prose",
    "threads",
    "warmup_tokens",
    "timeline",
)
_VERSIONS = ("layerstream", "layerstream-compare", "torch", "transformers")
_MOST_SHOWN = 60


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
        self._open()
        try:
            content = self.path.read_bytes()
            self.measurements, keep_bytes = _parse(content, self.path)
            os.ftruncate(self._fd, keep_bytes)
            if keep_bytes and content[keep_bytes - 1 : keep_bytes] != b"\n":
                os.write(self._fd, b"\n")
            _sync_folder(self.path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def refuse_another_experiment(self, case: Case, environment: Mapping[str, Any]) -> None:
        """Refuse to add to results of another prompt, model, set of settings or version.

        Args:
            case: any case of the experiment.
            environment: the machine, the software and the model's fingerprint now.

        Raises:
            ResultsError: with the old and the new values.
        """
        for measurement in self.measurements.values():
            if differences := list(_differences(measurement, case, environment)):
                raise ResultsError(
                    f"the results in {self.path} are another experiment's (old -> new): "
                    f"{'; '.join(differences)}. Choose another folder, or start afresh there with --restart "
                    "(in Python, restart=True); the old results are kept under another name"
                )

    def _open(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise ResultsError(f"{self.path} is not a plain file: choose another folder")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _lock(self._fd, self.path)
            if not self.path.exists() or not os.path.samestat(os.fstat(self._fd), self.path.stat()):
                raise ResultsError(f"another run has just set the results {self.path} aside: start again")
        except BaseException:
            os.close(self._fd)
            raise

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


def set_aside(folder: str | Path) -> Path | None:
    """Rename the results in `folder`, so that a run starts afresh; return their new path, None without any.

    The reports stay until the next run writes its own.

    Raises:
        ResultsError: another process is writing there.
        OSError: the folder cannot be written.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file() or not path.stat().st_size:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(descriptor, path)
        names = (path.with_name(f"{FILE_NAME}.{number}") for number in count(1))
        name = next(name for name in names if not os.path.lexists(name))
        path.rename(name)
        _sync_folder(path.parent)
    finally:
        os.close(descriptor)
    return name


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ResultsError(
            f"another run is writing to {path}: wait for it, or choose another folder"
        ) from error


def _differences(stored: Measurement, case: Case, environment: Mapping[str, Any]) -> Iterator[str]:
    for name in _SHARED:
        for difference in _difference(name, getattr(stored.case, name), getattr(case, name)):
            yield difference + (_how_to_go_on(stored.case) if name == "prose" else "")
    # a fingerprint or a version that one of them does not know is no difference
    old, new = (facts.get(FINGERPRINT) or {} for facts in (stored.environment, environment))
    if old and new:
        for name in sorted({*old, *new}):
            yield from _difference(f"the model's {name}", old.get(name), new.get(name))
    old, new = (facts.get("versions") or {} for facts in (stored.environment, environment))
    for name in _VERSIONS:
        if name in old and name in new:
            yield from _difference(name, old[name], new[name])


def _how_to_go_on(stored: Case) -> str:
    # a release changed the default of this setting: a folder from before it must not be a riddle
    choice = "add" if stored.prose else "leave out"
    return f" (to go on there, {choice} --prose; in Python, prose={stored.prose})"


def _difference(name: str, old: Any, new: Any) -> Iterator[str]:
    if old != new:
        yield f"{name}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"


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
