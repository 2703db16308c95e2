"""A converted GGUF file holds, bit for bit, what the model's author stored and what transformers reads."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from kit.families import EXPERTS, FAMILIES, GQA, HEAD
from kit.gguf_files import TOKENS, Array, as_f32, stored_as, tiny_model, write_gguf
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

import layerstream as ls

SIZES = {**GQA, "vocab_size": len(TOKENS)}
CONFIGS = {
    "llama": AutoConfig.for_model("llama", **SIZES, tie_word_embeddings=False),
    "qwen2": AutoConfig.for_model("qwen2", **SIZES, tie_word_embeddings=False),
    "qwen3": AutoConfig.for_model("qwen3", **SIZES, **HEAD, tie_word_embeddings=True),
    "qwen2moe": AutoConfig.for_model(
        "qwen2_moe", **SIZES, **EXPERTS, shared_expert_intermediate_size=48, decoder_sparse_step=1
    ),
    "qwen3moe": AutoConfig.for_model("qwen3_moe", **SIZES, **HEAD, **EXPERTS, norm_topk_prob=True),
    "gemma2": FAMILIES["gemma2"](),
    "gemma3": FAMILIES["gemma3_text"](),
    "phi3": FAMILIES["phi3"](),
}
WIDE = {**SIZES, "intermediate_size": 96}
MULTIPLES_OF_32 = {
    "llama": AutoConfig.for_model("llama", **WIDE),
    "qwen3moe": AutoConfig.for_model("qwen3_moe", **WIDE, **HEAD, **{**EXPERTS, "moe_intermediate_size": 32}),
}


def loaded(path: Path, **options: object) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def read_by_transformers(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Load the file itself, with the converted config: transformers reads not all sizes from the file."""
    config = AutoConfig.from_pretrained(path.parent / "converted")
    unpacked = GgufConfig(dequantize=True)
    return loaded(path.parent, gguf_file=path.name, config=config, dtype=dtype, quantization_config=unpacked)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def converted(path: Path, **options: object) -> Path:
    target = path.parent / "converted"
    ls.convert_checkpoint(path, target, **options)  # type: ignore[arg-type]
    return target


def stored_tensors(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for shard in directory.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_plain_numbers_are_the_authors_and_transformers(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(CONFIGS[architecture])
    path = write_gguf(model, tmp_path / "model.gguf", architecture)
    found = loaded(converted(path), dtype=torch.float32)
    assert_equal(found, read_by_transformers(path, torch.float32))
    for name, tensor in model.state_dict().items():
        # one is added and taken away again: that rounds
        tolerance = 1e-6 if architecture.startswith("gemma") and "norm" in name else 0.0
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_stored_as_it_is(kind: str, tmp_path: Path) -> None:
    path = write_gguf(tiny_model(CONFIGS["llama"]), tmp_path / "model.gguf", "llama", stored_as(kind))
    target = converted(path)
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[kind]
    stored = stored_tensors(target)
    assert stored["model.layers.0.self_attn.q_proj.weight"].dtype == dtype
    assert stored["model.norm.weight"].dtype == torch.float32
    assert AutoConfig.from_pretrained(target).dtype == dtype
    assert_equal(loaded(target, dtype="auto"), read_by_transformers(path, dtype))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_quantized_values_are_those_that_transformers_computes(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(MULTIPLES_OF_32[architecture])
    path = write_gguf(model, tmp_path / "model.gguf", architecture, stored_as(kind))
    report = ls.convert_checkpoint(path, tmp_path / "converted")
    assert (
        kind in report.notes[0] and "float16" in report.notes[0] and "not of the original" in report.notes[0]
    )
    found = loaded(tmp_path / "converted", dtype="auto")
    assert_equal(found, read_by_transformers(path, torch.float16))


@pytest.mark.parametrize(
    ("kind", "halves"), [("Q2_K", (80, 82)), ("Q3_K", (108,)), ("Q4_K", (0, 2)), ("Q6_K", (208,))]
)
def test_super_blocks_are_computed_row_by_row_as_in_one_go(
    kind: str, halves: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package gguf writes none of these, so blocks are random, but for their scales."""
    monkeypatch.setattr("layerstream.conversion.gguf_source.PIECE_BYTES", 10_000)
    number = gguf.GGMLQuantizationType[kind]
    generator = np.random.default_rng(0)

    def store(name: str, values: Array) -> tuple[Array, gguf.GGMLQuantizationType]:
        if values.ndim == 1:
            return as_f32(name, values)
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[number]
        blocks = generator.integers(
            0, 256, (*values.shape[:-1], values.shape[-1] // block_values, block_bytes)
        )
        blocks = blocks.astype(np.uint8)
        for first in halves:
            blocks[..., first : first + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        return blocks.reshape(*values.shape[:-1], -1), number

    config = AutoConfig.for_model(
        "llama", **{**SIZES, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    )
    path = write_gguf(tiny_model(config), tmp_path / "model.gguf", "llama", store)
    target = converted(path, dtype="float32")
    assert_equal(loaded(target, dtype=torch.float32), read_by_transformers(path, torch.float32))


def test_a_dtype_that_is_asked_for_is_the_dtype_of_every_weight(tmp_path: Path) -> None:
    path = write_gguf(tiny_model(CONFIGS["gemma2"]), tmp_path / "model.gguf", "gemma2")
    target = converted(path, dtype="bfloat16")
    assert {tensor.dtype for tensor in stored_tensors(target).values()} == {torch.bfloat16}
    assert_equal(loaded(target, dtype="auto"), read_by_transformers(path, torch.bfloat16))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_parts_give_the_same_files_as_the_whole(architecture: str, tmp_path: Path) -> None:
    """The head is in the last part, and says whether the embedding is tied."""
    model = tiny_model(CONFIGS[architecture])
    whole = write_gguf(model, tmp_path / "whole" / "model.gguf", architecture, tokenizer=True)
    parts = write_gguf(model, tmp_path / "parts" / "model.gguf", architecture, tokenizer=True, parts_of=9)
    assert parts.name.startswith("model-00001-of-")
    expected, found = converted(whole), converted(parts.parent)
    assert names_in(found) == names_in(expected)
    for name in names_in(expected):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_biases_of_query_and_key_follow_their_rows(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **SIZES, attention_bias=True)
    model = tiny_model(config)
    path = write_gguf(model, tmp_path / "model.gguf", "llama")
    (tmp_path / "converted").mkdir()
    config.save_pretrained(tmp_path / "converted")
    expected = read_by_transformers(path, torch.float32)
    assert torch.equal(
        expected["model.layers.0.self_attn.q_proj.bias"], model.model.layers[0].self_attn.q_proj.bias
    )
    (tmp_path / "converted" / "config.json").unlink()
    assert_equal(stored_tensors(converted(path)), dict(model.state_dict()))


def test_the_tokenizer_and_the_settings_are_transformers(tmp_path: Path) -> None:
    path = write_gguf(tiny_model(CONFIGS["llama"]), tmp_path / "model.gguf", "llama", tokenizer=True)
    target = converted(path)
    found = AutoTokenizer.from_pretrained(target)
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert found.get_vocab() == expected.get_vocab()
    assert found("ab c").input_ids == expected("ab c").input_ids
    assert (found.bos_token_id, found.eos_token_id) == (1, 2)
    config = AutoConfig.from_pretrained(target)
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert config.architectures == ["LlamaForCausalLM"]


def test_a_converted_model_streams_and_answers_as_the_authors_model(tmp_path: Path) -> None:
    model = tiny_model(CONFIGS["qwen3moe"])
    path = write_gguf(model, tmp_path / "model.gguf", "qwen3moe", tokenizer=True)
    ids = torch.arange(4, 12).reshape(1, -1)
    with ls.load(converted(path), budget="min", device="cpu") as streamed, torch.no_grad():
        assert torch.equal(streamed.model(ids).logits, model(ids).logits)
