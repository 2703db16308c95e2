"""Keywords of from_pretrained: each is used, or refused by its name with what to use instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, PreTrainedModel

import layerstream as ls
from layerstream.spec.keywords import _INSTEAD

VERBS: tuple[Callable[..., Any], ...] = (ls.load, ls.plan, ls.profile_model)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("torch_dtype", "give dtype"),
        ("device_map", "budget, device or devices"),
        ("max_memory", "give budget"),
        ("quantization_config", "layerstream-compare"),
        ("load_in_4bit", "unquantized"),
        ("use_auth_token", "give token"),
        ("gguf_file", "convert it once"),
        ("tp_plan", "devices="),
        ("state_dict", "save_pretrained"),
        ("budgett", "did you mean budget"),
        ("sliding_window", "config={'sliding_window': ...}"),
    ],
)
def test_a_keyword_that_has_no_meaning_here_is_refused_with_advice(
    verb: Callable[..., Any], keyword: str, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(ls.UnsupportedOptionError) as caught:
        verb(tmp_path, **{keyword: None})
    assert caught.value.names == (keyword,)
    assert f"{verb.__name__}() does not take {keyword}" in str(caught.value)
    assert advice in str(caught.value)
    assert isinstance(caught.value, TypeError), "what Python raises for an unknown keyword"


def test_every_wrong_keyword_of_one_call_is_named(tmp_path: Path) -> None:
    with pytest.raises(ls.UnsupportedOptionError) as caught:
        ls.load(tmp_path, torch_dtype="float16", device_map="auto")  # type: ignore[arg-type]
    assert caught.value.names == ("torch_dtype", "device_map")


def test_every_keyword_of_from_pretrained_is_used_or_has_advice() -> None:
    expected = set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    expected -= {"pretrained_model_name_or_path", "model_args", "kwargs"}
    assert expected <= {*_INSTEAD, *inspect.signature(ls.load).parameters}


def test_no_advice_is_about_a_keyword_that_is_used() -> None:
    assert not set(_INSTEAD) & set(inspect.signature(ls.load).parameters)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(ls.LoadOptions(token="secret"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subfolder": "../other"}, "path inside the checkpoint"),
        ({"subfolder": "/etc"}, "path inside the checkpoint"),
        ({"variant": ""}, "part of the weights' file names"),
        ({"variant": "a/b"}, "part of the weights' file names"),
    ],
)
def test_names_that_lead_out_of_the_checkpoint_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ls.PlanError, match=message):
        ls.LoadOptions(**wrong)


@pytest.mark.parametrize("verb", [ls.load, ls.plan], ids=lambda verb: verb.__name__)
@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"hidden_size": 32}, ls.CheckpointError, r"shape \[128, 64\].*config replaces hidden_size"),
        ({"num_hidden_layers": 9}, ls.TensorMissingError, "lacks 45 .*config replaces num_hidden_layers"),
        ({"hiden_size": 64}, ls.PlanError, "config holds hiden_size.*check the spelling"),
        ({"_name_or_path": "x"}, ls.PlanError, "config holds _name_or_path"),
        ({"dtype": "float16"}, ls.PlanError, "config cannot hold dtype: give dtype itself"),
        ({"torch_dtype": "float16"}, ls.PlanError, "give dtype itself"),
        ({"attn_implementation": "eager"}, ls.PlanError, "give attn_implementation itself"),
        ("config.json", ls.PlanError, "config is a str, but must be a mapping"),
        (LlamaConfig(hidden_size=32), ls.CheckpointError, "the config is the one given as config="),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    verb: Callable[..., Any], config: Any, kind: type[Exception], message: str, tiny_llama_dir: Path
) -> None:
    with pytest.raises(kind, match=message):
        verb(tiny_llama_dir, budget="min", config=config)


def test_the_users_config_stays_as_it_is(tiny_llama_dir: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama_dir)
    settings = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}
    before = config.to_dict()
    with ls.load(tiny_llama_dir, budget="min", config=config, dtype="bfloat16"):
        pass
    with ls.load(tiny_llama_dir, budget="min", config=settings):
        pass
    assert config.to_dict() == before
    assert settings == {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}


def test_a_kernel_of_the_hub_without_its_package_is_one_error_that_says_what_to_install(
    tiny_llama_dir: Path,
) -> None:
    for verb in VERBS:
        with pytest.raises(ls.UnsupportedModelError) as caught:
            verb(tiny_llama_dir, attn_implementation="kernels-community/flash-attn2")
        assert "attn_implementation='kernels-community/flash-attn2'" in str(caught.value)
        assert "pip install kernels" in str(caught.value)


def test_a_config_alone_takes_no_option_about_files() -> None:
    config = LlamaConfig(hidden_size=64, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4)
    with pytest.raises(ls.PlanError, match="subfolder, variant cannot be used: the model is a config"):
        ls.profile_model(config, variant="fp16", subfolder="x")


def test_a_variant_that_is_not_there_is_named_with_what_is(tiny_llama_dir: Path) -> None:
    with pytest.raises(
        ls.CheckpointNotFoundError, match=r"neither model\.fp16\.safetensors nor .* but model\.safetensors"
    ):
        ls.load(tiny_llama_dir, variant="fp16")
