"""A read request is checked before anything is read, since a wrong address would overwrite other memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerstream.checkpoint.buffers import AlignedBuffer
from layerstream.checkpoint.reader import ReadRequest


def test_a_wrong_address_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    buffer = AlignedBuffer(100)
    with pytest.raises(AssertionError, match="address"):
        ReadRequest(
            path=str(tmp_path), offset=0, num_bytes=10, target=buffer.view(0, 10), address=buffer.address + 1
        )
    with pytest.raises(AssertionError):
        ReadRequest(
            path=str(tmp_path), offset=0, num_bytes=11, target=buffer.view(0, 10), address=buffer.address
        )
