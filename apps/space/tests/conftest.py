"""Fixtures of the app's tests: a tiny checkpoint, and the app as a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# the tiny checkpoint comes from compare's tests
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "packages" / "compare" / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from app_process import App
from tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a Llama with 2 blocks in float16; never write to it."""
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-model"))


@pytest.fixture(scope="session")
def app(tiny_model: str) -> Iterator[App]:
    """The app on the tiny checkpoint, served on localhost."""
    with App("--model", tiny_model, "--budget", "min") as running:
        yield running
