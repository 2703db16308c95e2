"""Drivers of storages: missing ones, their errors, and several requests at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import fsspec  # type: ignore[import-untyped]
import pytest

import layerstream as ls
from layerstream.checkpoint.remote_fsspec import FsspecFolder
from layerstream.errors import CheckpointNotFoundError, FetchError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a copy would go."""
    return tmp_path / "copy"


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    def not_installed(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", not_installed)
    with pytest.raises(FetchError, match="pip install s3fs"):
        ls.fetch("s3://bucket/model", target)


def test_an_unknown_protocol_is_refused(target: Path) -> None:
    with pytest.raises(FetchError, match="s3://"):
        ls.fetch("nosuch://bucket/model", target)


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (FileNotFoundError("The specified bucket does not exist"), CheckpointNotFoundError, "bucket"),
        (PermissionError("Access Denied"), CheckpointNotFoundError, "credentials"),
        (RuntimeError("Unable to locate credentials"), CheckpointNotFoundError, "credentials"),
        (TimeoutError("read timed out"), FetchError, "network"),
    ],
)
def test_what_a_driver_raises_becomes_an_error_that_says_what_to_do(
    raised: Exception, kind: type[Exception], told: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, path: str, **_: object) -> None:
        raise raised

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", fail)
    with pytest.raises(kind, match=told):
        ls.fetch("memory://bucket/model", target)


class AsyncDriver(NamedTuple):
    """A driver that takes several requests at a time."""

    data: bytes
    async_impl: bool = True

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        return self.data[start:end]


def test_pieces_that_are_asked_for_at_once_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerstream.checkpoint.remote_fsspec._PIECE_BYTES", 7)
    folder = FsspecFolder("memory://somewhere")
    folder._system = AsyncDriver(bytes(range(200)))
    assert b"".join(folder._pieces("file", 3, 198)) == bytes(range(3, 198))
