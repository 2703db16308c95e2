"""Copies of checkpoints from a web server: compare them, change their source, ask it each time.

Test kit.
"""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

import pytest

from layerstream.checkpoint import file_copy, url_copy


def ask_each_time(monkeypatch: pytest.MonkeyPatch, cache: Path, waits_s: tuple[float, ...]) -> None:
    """Copy into a cache of the test's own; ask servers each time, and try again after `waits_s`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(url_copy, "_COUNTS_FOR_S", -1.0)
    monkeypatch.setattr(file_copy, "WAITS_S", waits_s)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def same_files(copy: Path, original: Path) -> bool:
    """Return whether all files of `original` are in `copy`, byte for byte."""
    names = [path.name for path in original.iterdir()]
    _, different, missing = filecmp.cmpfiles(copy, original, names, shallow=False)
    return not different and not missing


def change(path: Path, data: bytes) -> None:
    """Replace a file's contents, with another time."""
    path.write_bytes(data)
    os.utime(path, (1, 1))
