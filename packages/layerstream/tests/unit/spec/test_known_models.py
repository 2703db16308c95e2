"""The configs of well-known models give the published numbers of parameters."""

from __future__ import annotations

import pytest

from layerstream import KNOWN_MODELS
from layerstream.architecture.configs import count_parameters, known_config

PUBLISHED = {
    # billions, from model cards and technical reports; Gemma 3's is the language model alone
    "llama-3.2-1b": 1.23,
    "llama-3.1-8b": 8.03,
    "llama-3.3-70b": 70.6,
    "llama-3.1-405b": 405.0,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235.0,
    "qwen3-next-80b-a3b": 80.0,
    "mistral-7b": 7.25,
    "mistral-small-24b": 23.6,
    "mistral-large-123b": 123.0,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 141.0,
    "gemma-3-4b": 0.675 + 3.209,
    "gemma-3-12b": 1.012 + 10.759,
    "gemma-3-27b": 1.416 + 25.600,
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.83,
    "glm-4.5-air": 106.0,
    "glm-4.5": 355.0,
    "glm-4.6": 355.0,
    "deepseek-v3": 671.0,
    "kimi-k2": 1040.0,
    "gpt-3-175b": 175.0,
    "bloom-176b": 176.2,
    "llama-2-70b": 69.0,
    "falcon-40b": 41.3,
    "mpt-30b": 30.0,
    "starcoder-15.5b": 15.5,
}


def test_every_known_model_has_a_published_number() -> None:
    assert set(PUBLISHED) == set(KNOWN_MODELS)


@pytest.mark.parametrize("name", list(KNOWN_MODELS))
def test_model_built_from_the_config_has_the_stored_number_of_parameters_and_the_published_one(
    name: str,
) -> None:
    counted = count_parameters(known_config(name))
    assert counted == KNOWN_MODELS[name].num_parameters
    assert counted / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)


def test_model_that_was_published_quantized_says_so_and_is_planned_in_16_bits() -> None:
    quantized = {name for name, model in KNOWN_MODELS.items() if "does not load yet" in model.note}
    assert quantized == {"deepseek-v3", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b"}
    assert {KNOWN_MODELS[name].dtype for name in quantized} == {"bfloat16"}
    assert str(known_config("deepseek-v3").dtype).endswith("bfloat16")
