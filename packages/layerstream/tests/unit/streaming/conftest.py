"""A file of numbered units, as `kit.byte_units` describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.byte_units import NUM_UNITS, UNIT_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"".join(bytes([index + 1]) * UNIT_BYTES for index in range(NUM_UNITS)))
    return path
