"""What the app's tests share: a tiny checkpoint, the app as a process of its own, and a browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# the tiny checkpoint is compare's
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "packages" / "compare" / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from app_process import App
from tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a Llama of 2 blocks in float16; read it, never write to it."""
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-model"))


@pytest.fixture(scope="session")
def app(tiny_model: str) -> Iterator[App]:
    """The app on the tiny checkpoint, serving on localhost."""
    with App("--model", tiny_model, "--budget", "min") as running:
        yield running
