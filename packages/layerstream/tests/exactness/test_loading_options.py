"""With the same options, a streamed model equals the plain model bit for bit, and has the plan of `plan`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.budgets import WORKLOAD
from kit.compare import assert_same, greedy, logits, reference
from kit.families import save_tiny
from kit.tiny_llama import save_tiny_llama, tiny_tokenizer
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoTokenizer,
    masking_utils,
    modeling_utils,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import layerstream as ls

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}


def assert_equal(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare the model that `load` makes with the one that `from_pretrained` makes, and plan with load."""
    plain = reference(path, **theirs)
    with ls.load(path, budget="min", workload=WORKLOAD, **ours) as streamed:
        assert_same(logits(plain), logits(streamed.model), f"logits with {ours}")
        assert_same(greedy(plain), greedy(streamed.model), f"greedy with {ours}")
        assert streamed.model.generation_config.to_dict() == plain.generation_config.to_dict()
        assert ls.plan(path, budget="min", workload=WORKLOAD, **ours).units == streamed.plan.units


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"rope_parameters": LINEAR}),
        ("llama", {"rms_norm_eps": 0.1, "eos_token_id": 7, "pad_token_id": 3}),
        ("mistral_sliding", {"sliding_window": None}),
        ("mistral_sliding", {"sliding_window": 4}),
    ],
)
def test_settings_replace_those_of_the_config(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path / "model")
    assert_equal(path, {"config": settings}, settings)
    plain, changed = reference(path), reference(path, **settings)
    assert not torch.equal(logits(plain)["logits"], logits(changed)["logits"]) or "eos_token_id" in settings


def test_a_config_replaces_the_checkpoints(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "model")
    config = AutoConfig.from_pretrained(path)
    config.rms_norm_eps = 0.1
    assert_equal(path, {"config": config}, {"config": config})


def test_settings_of_a_part_replace_those_of_the_text_model(tmp_path: Path) -> None:
    path = save_tiny("llama4_text", tmp_path / "model")
    text = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    settings = {"text_config": {"rms_norm_eps": 0.1}}
    assert_equal(path, {"config": settings}, settings)
    with pytest.raises(ls.PlanError, match="its own mapping: text_config"):
        ls.plan(path, config={"rms_norm_eps": 0.1})


def test_fewer_blocks_are_the_plain_models_with_a_warning(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "model")
    plain = reference(path, num_hidden_layers=3)
    with (
        pytest.warns(UserWarning, match="they are not used"),
        ls.load(path, budget="min", config={"num_hidden_layers": 3}) as streamed,
    ):
        assert_same(logits(plain), logits(streamed.model), "three blocks")


def test_a_subfolder_holds_config_weights_and_generation_config(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model" / "inner")
    save_tiny("llama_tied", tmp_path / "model")
    (tmp_path / "model" / "inner" / "generation_config.json").write_text('{"max_length": 33, "top_k": 7}')
    assert_equal(tmp_path / "model", {"subfolder": "inner"}, {"subfolder": "inner"})


@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"], ids=["single", "sharded"])
def test_a_variant_is_read_from_its_own_files(max_shard_size: str, tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "model")
    other = reference(path)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    other.save_pretrained(path, variant="doubled", max_shard_size=max_shard_size)
    assert len(list(path.glob("*index.doubled.json"))) == (0 if max_shard_size == "10GB" else 1)
    assert_equal(path, {"variant": "doubled"}, {"variant": "doubled"})
    assert_equal(path, {}, {})


def test_the_tokenizer_of_requests_comes_from_the_same_subfolder(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "inner")
    other = tiny_tokenizer()
    other.bos_token = "<unk>"
    other.save_pretrained(tmp_path)
    shutil.copy(tmp_path / "inner" / "config.json", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, subfolder="inner")
    with ls.load(tmp_path, budget="min", subfolder="inner") as streamed:
        (result,) = ls.generate_many(streamed, ["The sea"])
        inputs = tokenizer("The sea", return_tensors="pt")
        expected = streamed.generate(**inputs, max_new_tokens=128, do_sample=False)
    assert result.tokens == tuple(expected[0, inputs["input_ids"].shape[1] :].tolist())
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "inner" / "tokenizer.json").unlink()
    with (
        ls.load(tmp_path, budget="min", subfolder="inner") as streamed,
        pytest.raises(ls.CheckpointError, match="cannot read a tokenizer"),
    ):
        ls.generate_many(streamed, ["The sea"])


def test_a_kernel_of_the_hub_is_loaded_and_used_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself is a stand-in: what a package would fetch from the Hub is registered here."""
    kernel, loaded, calls = "kernels-community/stand-in", [], []

    def attention(*args: Any, **kwargs: Any) -> Any:
        calls.append(kernel)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(
        modeling_utils, "lazy_import_flash_attention", lambda name, **_: loaded.append(name), raising=True
    )
    monkeypatch.setitem(AttentionInterface._global_mapping, kernel, attention)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, kernel, masking_utils.sdpa_mask)
    path = save_tiny("llama", tmp_path / "model")
    assert_equal(path, {"attn_implementation": kernel}, {"attn_implementation": kernel})
    assert set(loaded) == {kernel}
    assert calls
