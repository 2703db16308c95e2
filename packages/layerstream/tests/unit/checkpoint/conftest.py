"""A file of random bytes on each kind of file system, and a reader that splits its reads."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.random_file import CHUNK_BYTES, CONTENT

from layerstream.checkpoint.reader import DiskReader


@pytest.fixture(scope="module", params=["disk", "tmpfs"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A file of random bytes whose length is not a multiple of any alignment."""
    if request.param == "tmpfs" and not os.path.isdir("/dev/shm"):
        pytest.skip("no tmpfs here")
    folder = (
        Path(tempfile.mkdtemp(dir="/dev/shm"))
        if request.param == "tmpfs"
        else tmp_path_factory.mktemp("reader")
    )
    (folder / "bytes").write_bytes(CONTENT)
    yield str(folder / "bytes")
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "buffered"])
def reader(request: pytest.FixtureRequest) -> Iterator[DiskReader]:
    """A reader whose chunks are small, so that most reads consist of several."""
    with DiskReader(num_threads=3, chunk_bytes=CHUNK_BYTES, direct=request.param) as reader:
        yield reader
