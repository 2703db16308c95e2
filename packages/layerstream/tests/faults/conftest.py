"""Damaged checkpoints are made and loaded on one thread and without transformers' log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.quiet import quiet_and_single_threaded


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    with quiet_and_single_threaded():
        yield
