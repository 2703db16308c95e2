"""Checkpoints that do not fit their model, and unsupported models: one clear typed error at load time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.budgets import load
from kit.compare import assert_same, greedy, logits, reference
from kit.damage import rewrite_config, rewrite_tensors
from kit.families import FAMILIES, save_tiny, save_tiny_config
from transformers import AutoConfig, AutoModel, PreTrainedModel

import layerstream as ls

BUDGETS = ("min", "resident")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a tiny Llama checkpoint with a separate head."""
    return save_tiny("llama", tmp_path / "llama")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "name",
    ["model.layers.3.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"],
)
def test_a_missing_tensor_is_reported_by_name(path: Path, name: str, budget: str) -> None:
    """transformers would continue with random values."""
    rewrite_tensors(path, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ls.TensorMissingError) as caught, load(path, "auto", budget):
        pass
    assert name in caught.value.names
    assert name in str(caught.value)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_missing_expert_of_a_fused_group_is_refused(tmp_path: Path, budget: str) -> None:
    """The fused parameter would have a hole."""
    path = save_tiny("mixtral", tmp_path)
    names: list[str] = []

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        names.append(next(name for name in sorted(tensors) if "layers.2" in name and "experts.3" in name))
        del tensors[names[0]]

    rewrite_tensors(path, drop)
    with pytest.raises(ls.TensorMissingError) as caught, load(path, "auto", budget):
        pass
    assert "layers.2" in str(caught.value)


def test_a_tied_head_may_be_missing(tmp_path: Path) -> None:
    """The embedding serves as the head."""
    path = save_tiny("llama_tied", tmp_path)
    rewrite_tensors(path, lambda tensors: tensors.pop("lm_head.weight", None))
    with load(path, "auto", "min") as streamed:
        assert_same(greedy(reference(path)), greedy(streamed.model), "tied without a head tensor")


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_separate_head_despite_the_tie_is_used_as_transformers_uses_it(tmp_path: Path, budget: str) -> None:
    """The config says tied, but the file holds another matrix: the result is the one of transformers."""
    path = save_tiny("llama_tied", tmp_path)

    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()

    rewrite_tensors(path, untie)
    with load(path, "auto", budget) as streamed:
        assert_same(logits(reference(path)), logits(streamed.model), f"separate head at {budget}")


def test_more_layers_in_the_config_than_in_the_files_are_refused(path: Path) -> None:
    """The missing block is named."""
    rewrite_config(path, num_hidden_layers=6)
    with pytest.raises(ls.TensorMissingError, match=r"model\.layers\.5\."), load(path, "auto", "min"):
        pass


def test_an_extra_tensor_causes_a_warning_and_is_not_read(path: Path) -> None:
    """transformers only logs it; here it is a warning, and the result is the same."""
    rewrite_tensors(path, lambda tensors: tensors.update({"model.layers.0.surprise.weight": torch.zeros(3)}))
    with pytest.warns(UserWarning, match="surprise"), load(path, "auto", "min") as streamed:
        assert_same(greedy(reference(path)), greedy(streamed.model), "with an extra tensor")


def _wrong_shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:], dtype=tensor.dtype)


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T.contiguous()


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(tensor, dtype=torch.int32)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("change", [_wrong_shape, _transposed, _integers])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_a_tensor_of_another_shape_or_kind_is_reported_by_name(
    path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], budget: str
) -> None:
    """The same number of bytes in another shape is also wrong, and so are integers in place of a weight."""
    rewrite_tensors(path, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(ls.CheckpointError, match=name.replace(".", r"\.")), load(path, "auto", budget):
        pass


def test_one_expert_of_another_shape_is_refused(tmp_path: Path) -> None:
    """It does not fit into the fused parameter."""
    path = save_tiny("mixtral", tmp_path)

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if "layers.2" in name and "experts.3" in name)
        tensors[name] = tensors[name][:-1].clone()

    rewrite_tensors(path, shrink)
    with pytest.raises(ls.CheckpointError, match=r"layers\.2"), load(path, "auto", "min"):
        pass


def test_another_vocabulary_in_the_config_is_refused(path: Path) -> None:
    """Config and files do not belong together."""
    rewrite_config(path, vocab_size=200)
    with pytest.raises(ls.CheckpointError), load(path, "auto", "min"):
        pass


@pytest.mark.parametrize("dtype", ["float17", "int8", "", "torch"])
def test_a_dtype_that_no_model_can_run_in_is_refused(path: Path, dtype: str) -> None:
    """The error comes before anything is read."""
    with pytest.raises(ls.PlanError, match="dtype"), load(path, dtype, "min"):
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "unknown_method"},
    ],
    ids=lambda settings: settings["quant_method"],
)
def test_a_quantized_checkpoint_is_refused(path: Path, settings: dict[str, Any]) -> None:
    """Its scales would be ignored."""
    rewrite_config(path, quantization_config=settings)
    with pytest.raises(ls.UnsupportedFormatError, match=settings["quant_method"]), load(path, "auto", "min"):
        pass


def test_remote_code_that_was_not_allowed_is_refused_and_not_run(path: Path) -> None:
    """The error names the option that allows it."""
    marker = path / "was_run"
    (path / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    rewrite_config(path, model_type="own_model", auto_map=auto_map)
    with pytest.raises(ls.UnsupportedModelError, match="trust_remote_code"), load(path, "auto", "min"):
        pass
    assert not marker.exists()


def test_an_unknown_model_type_is_reported_by_name(path: Path) -> None:
    """The error says which type it is."""
    rewrite_config(path, model_type="no_such_model")
    with pytest.raises(ls.UnsupportedModelError, match="no_such_model"), load(path, "auto", "min"):
        pass


@pytest.mark.parametrize("model_type", ["distilbert", "t5", "vit"])
def test_a_model_that_is_not_a_causal_language_model_is_refused(model_type: str, tmp_path: Path) -> None:
    """An encoder, an encoder-decoder, an image model."""
    sizes = {
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 101},
        "t5": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48, "vocab_size": 101},
        "vit": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": 32,
        },
    }
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes[model_type]))
    model.save_pretrained(tmp_path)
    with pytest.raises(ls.UnsupportedModelError, match=model_type), load(tmp_path, "auto", "min"):
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_without_blocks_is_refused(family: str, tmp_path: Path) -> None:
    """An embedding and a head alone have nothing to stream."""
    config = FAMILIES[family]()
    config.num_hidden_layers = 0
    if hasattr(config, "layer_types"):
        config.layer_types = []
    save_tiny_config(config, tmp_path)
    with pytest.raises(ls.BlocksNotFoundError), load(tmp_path, "auto", "min"):
        pass


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", '{"hidden_size": 64}'], ids=["absent", "empty", "cut", "list", "no type"]
)
def test_an_unusable_config_is_refused(path: Path, text: str | None) -> None:
    """Whatever is wrong with it, the error is one of ours."""
    config = path / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    with (
        pytest.raises((ls.CheckpointError, ls.UnsupportedModelError), match=r"config\.json"),
        load(path, "auto", "min"),
    ):
        pass


def test_a_pickled_checkpoint_is_refused_with_the_way_to_convert_it(path: Path) -> None:
    """Pickles can run code, and cannot be read in parts."""
    for shard in (*path.glob("*.safetensors"), *path.glob("*.index.json")):
        shard.unlink()
    torch.save({"model.norm.weight": torch.ones(64)}, path / "pytorch_model.bin")
    with pytest.raises(ls.UnsupportedFormatError, match="safetensors"), load(path, "auto", "min"):
        pass
