"""Puts the test kit on the import path; one thread and a quiet transformers while these tests run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True, scope="module")
def _quiet_and_single_threaded() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and workers side by side lose by them."""
    num_threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(num_threads)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()
