"""Every test of files and batches starts from an empty store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.batch_stores import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    """A store on an empty folder."""
    kit = StoreKit(tmp_path / "batches")
    yield kit
    kit.store.close()
