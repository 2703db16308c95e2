"""What is global but must be each task's own: captured, changed by another, and put back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.compare import reference
from kit.families import save_tiny
from transformers import PreTrainedModel

from layerstream.engine.task_state import ModelTaskState


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return reference(save_tiny("qwen3_moe", tmp_path_factory.mktemp("model")))


def test_random_numbers_go_on_where_they_were(model: PreTrainedModel) -> None:
    own = ModelTaskState(model, torch.device("cpu"))
    torch.manual_seed(1)
    state, expected = own.capture(), torch.rand(3)
    torch.manual_seed(2)
    own.restore(state)
    assert torch.equal(torch.rand(3), expected)


def test_what_generate_changes_on_the_model_is_put_back(model: PreTrainedModel) -> None:
    """The experts kernel of decoding, and the length of the last static cache, which is absent at first."""
    own = ModelTaskState(model, torch.device("cpu"))
    before, kernel = own.capture(), model.config._experts_implementation
    model.set_experts_implementation("batched_mm")
    model._previous_max_cache_length = 77
    changed = own.capture()
    own.restore(before)
    assert model.config._experts_implementation == kernel != "batched_mm"
    assert not hasattr(model, "_previous_max_cache_length")
    own.restore(changed)
    assert (model.config._experts_implementation, model._previous_max_cache_length) == ("batched_mm", 77)
    own.restore(before)


def test_the_longest_length_that_a_rotary_embedding_has_seen_is_put_back(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = reference(path, rope_parameters=rope, max_position_embeddings=8)
    own, rotary = ModelTaskState(model, torch.device("cpu")), model.model.rotary_emb
    before, frequencies = own.capture(), rotary.inv_freq.clone()
    with torch.no_grad():
        model(torch.arange(5, 25)[None])
    assert not torch.equal(rotary.inv_freq, frequencies)
    own.restore(before)
    assert torch.equal(rotary.inv_freq, frequencies)
    assert rotary.max_seq_len_cached == 8
