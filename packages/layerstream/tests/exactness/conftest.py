"""What comparisons share: one thread, no log of transformers, and a tiny Llama, plain and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit.budgets import load
from kit.compare import reference
from kit.families import save_tiny
from kit.quiet import quiet_and_single_threaded
from transformers import PreTrainedModel

import layerstream as ls


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    with quiet_and_single_threaded():
        yield


@pytest.fixture(scope="module")
def bf16_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama checkpoint in bf16 with a separate head."""
    return save_tiny("llama", tmp_path_factory.mktemp("llama"), torch.bfloat16)


@pytest.fixture(scope="module")
def plain(bf16_llama_dir: Path) -> PreTrainedModel:
    """Return the plain model of `bf16_llama_dir`."""
    return reference(bf16_llama_dir)


@pytest.fixture
def streamed(bf16_llama_dir: Path) -> Iterator[ls.StreamedModel]:
    """Return `bf16_llama_dir` streamed at the least budget."""
    with load(bf16_llama_dir, "auto", "min") as model:
        yield model
