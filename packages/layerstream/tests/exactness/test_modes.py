"""Under every mode of torch, and frozen or not, a streamed model equals the plain one in the same mode.

ATen picks kernels by a weight's `requires_grad` and by whether it is an inference tensor. In fp32 the last
bit then differs, most of all where the head sees a part of a larger tensor (`logits_to_keep`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from kit.budgets import load
from kit.compare import Tensors, assert_same, greedy, left_padded_batch, reference
from kit.families import save_tiny
from kit.tiny_llama import save_with_a_large_vocabulary
from transformers import PreTrainedModel

Mode = Callable[[], AbstractContextManager[None]]
MODES: tuple[Mode, ...] = (torch.no_grad, torch.inference_mode, torch.enable_grad)


def _results(model: PreTrainedModel, mode: Mode) -> Tensors:
    results: Tensors = {}
    with mode():
        for lengths in ((9, 6), (9, 7, 5), (7,)):
            batch = left_padded_batch(model, lengths)
            rows = len(lengths)
            results[f"last logits of {rows}"] = model(**batch, logits_to_keep=1).logits.detach()
            results[f"logits of {rows}"] = model(**batch).logits.detach()
        return results | greedy(model)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["as loaded", "frozen"])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "mixtral", "sliced head"])
def test_every_mode_gives_the_plain_models_bits(family: str, is_frozen: bool, tmp_path: Path) -> None:
    """One model goes through all modes, so that what one of them installs meets the next."""
    if family == "sliced head":
        path = save_with_a_large_vocabulary(tmp_path)
    else:
        path = save_tiny(family, tmp_path, torch.float32)
    plain = reference(path)
    plain.requires_grad_(not is_frozen)
    with load(path, "auto", "min") as streamed:
        assert family != "sliced head" or streamed.plan.head_slices > 8
        streamed.model.requires_grad_(not is_frozen)
        for mode in (*MODES, torch.no_grad):
            assert_same(_results(plain, mode), _results(streamed.model, mode), mode.__name__)
