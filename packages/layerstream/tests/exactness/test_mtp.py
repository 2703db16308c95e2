"""A model that drafts with its own multi-token prediction layers equals the plain model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kit.budgets import load
from kit.compare import Tensors, assert_same, generate, reference
from kit.families import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, PreTrainedModel

modeling_layers = pytest.importorskip("transformers.modeling_layers")
pytestmark = pytest.mark.skipif(
    not hasattr(modeling_layers, "MtpModel"), reason="this transformers cannot draft with such layers"
)


def _save_with_a_prediction_layer(path: Path) -> int:
    """Write a DeepSeek-V3 whose last block is a prediction layer; return how many blocks come before it."""
    torch.manual_seed(1)
    config = FAMILIES["deepseek_v3"]()
    num_blocks = config.num_hidden_layers
    config.num_hidden_layers += 1
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tensors, width = load_file(path / "model.safetensors"), config.hidden_size
    layer = f"model.layers.{num_blocks}"
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{layer}.{norm}.weight"] = torch.ones(width)
    tensors[f"{layer}.eh_proj.weight"] = 0.1 * torch.randn(width, 2 * width)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((path / "config.json").read_text()) | {"num_hidden_layers": num_blocks}
    (path / "config.json").write_text(json.dumps(settings))
    return num_blocks


def _drafted(model: PreTrainedModel) -> Tensors:
    ids = torch.arange(5, 14)[None]
    mask = torch.ones_like(ids)
    return generate(model, input_ids=ids, attention_mask=mask, do_sample=False, use_mtp=True)


def test_drafting_with_the_models_own_layers_equals_the_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_blocks = _save_with_a_prediction_layer(tmp_path)
    # transformers names the prediction layer of the released model, which has 61 blocks.
    pattern = rf"model\.layers\.{num_blocks}.*"
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [pattern])
    expected = _drafted(reference(tmp_path))
    for budget in ("min", "resident"):
        with load(tmp_path, "auto", budget) as streamed:
            assert_same(expected, _drafted(streamed.model), budget)
