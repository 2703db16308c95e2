"""Fixtures of this package's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from layerstream_compare.case import Case
from layerstream_compare.events import Event
from layerstream_compare.runners.isolate import run_isolated

# test modules are imported by path, so that helpers next to them need this
sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import save_tiny_model


@pytest.fixture
def case() -> Case:
    return Case(model="some/model", variant="resident", prompt="Hello", time_limit_s=30)


@pytest.fixture
def runner() -> Callable[[Sequence[str]], Callable[[Case], Iterator[Event]]]:
    return lambda command: partial(run_isolated, worker_command=command)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a 2-block Llama in float16 with untied embedding and head; tests must not write to it."""
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny-model")))
