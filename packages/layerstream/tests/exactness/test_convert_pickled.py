"""Converted pickled weights are the original's, bit for bit, however the file stores them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from kit.families import save_tiny
from kit.pickled_weights import INDEX, SINGLE, save_bin, save_pickled
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.conversion import pickled
from layerstream.conversion.pickled import PickledSource

FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "gpt_neox", "bloom", "mamba2", "gpt_oss")


def stored_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_family_is_the_same(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path / "original", dtype=torch.bfloat16)
    expected = save_pickled(tmp_path / "original", tmp_path / "pickled", is_sharded=True)
    report = ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted", max_shard_size=50_000)
    assert report.num_files > 1
    assert report.num_tensors == len(expected)
    assert_equal(stored_tensors(tmp_path / "converted"), expected)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype="auto")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "converted", dtype="auto")
    assert_equal(dict(found.state_dict()), dict(original.state_dict()))


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("is_old", [False, True])
def test_old_and_new_files_with_and_without_an_index_give_the_same(
    is_sharded: bool, is_old: bool, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    expected = save_pickled(tiny_llama_dir, tmp_path / "pickled", is_sharded=is_sharded, is_old=is_old)
    report = ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted")
    assert_equal(stored_tensors(tmp_path / "converted"), expected)
    assert bool(report.notes) == is_old
    if is_old:
        assert "loaded whole" in report.notes[0]


def test_the_other_files_are_copied_and_the_model_streams_as_before(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    save_pickled(tiny_llama_dir, tmp_path / "pickled")
    target = tmp_path / "converted"
    ls.convert_checkpoint(tmp_path / "pickled", target)
    assert sorted(path.name for path in target.iterdir()) == sorted(
        path.name for path in tiny_llama_dir.iterdir()
    )
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (target / name).read_bytes() == (tiny_llama_dir / name).read_bytes()
    ids = torch.arange(4, 12).reshape(1, -1)
    resident = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    with ls.load(target, budget="min", device="cpu") as streamed, torch.no_grad():
        assert torch.equal(streamed.model(ids).logits, resident(ids).logits)


def test_a_weight_that_two_names_share_is_written_once_where_the_model_ties_them(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "original")
    tensors = save_pickled(tmp_path / "original", tmp_path / "pickled")
    shared = {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}
    save_bin(shared, tmp_path / "pickled" / SINGLE)
    ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted")
    assert_equal(stored_tensors(tmp_path / "converted"), tensors)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "original")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert_equal(dict(found.state_dict()), dict(original.state_dict()))


def test_a_weight_that_two_names_share_is_written_twice_where_the_model_does_not_tie_them(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    tensors = save_pickled(tiny_llama_dir, tmp_path / "pickled")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_bin(tensors, tmp_path / "pickled" / SINGLE)
    ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted")
    assert_equal(stored_tensors(tmp_path / "converted"), tensors)


def test_a_dtype_that_is_asked_for_is_in_the_weights_and_the_config(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    tensors = save_pickled(tiny_llama_dir, tmp_path / "pickled")
    ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted", dtype="bfloat16")
    expected = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert_equal(stored_tensors(tmp_path / "converted"), expected)
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    before = json.loads((tiny_llama_dir / "config.json").read_text())
    assert {**config, "dtype": before["dtype"]} == before


BASE = torch.arange(5000, dtype=torch.float32)
LAYOUTS = {
    "plain": BASE.clone(),
    "slice of a larger storage": BASE[1000:3000].reshape(40, 50),
    "transposed": BASE.reshape(50, 100).t(),
    "every second column": BASE.reshape(50, 100)[:, ::2],
    "permuted": BASE.half().reshape(10, 20, 25).permute(2, 0, 1),
    "expanded": BASE[7:8].expand(3, 4),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "flags": BASE.reshape(50, 100)[3] % 3 == 0,
    "integers": BASE.long(),
    "bytes": BASE.to(torch.uint8),
    "bfloat16": BASE.bfloat16(),
    "not numbers": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    "parameter": torch.nn.Parameter(BASE.reshape(100, 50)),
    "eight bits": BASE.to(torch.float8_e4m3fn),
    "complex": torch.complex(BASE, -BASE),
}


@pytest.mark.parametrize("is_old", [False, True])
def test_every_layout_and_dtype_is_read_in_row_major_order(
    is_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled, "PIECE_BYTES", 999)
    # the old format cannot hold every dtype
    layouts = {name: tensor for name, tensor in LAYOUTS.items() if not is_old or name != "eight bits"}
    save_bin(layouts, tmp_path / "a.bin", is_old=is_old)
    source = PickledSource([tmp_path / "a.bin"])
    assert [tensor.name for tensor in source.tensors] == list(layouts)
    for described in source.tensors:
        expected = LAYOUTS[described.name].detach()
        pieces = [piece.clone() for piece in source.read(described.name)]
        found = torch.cat([torch.empty(0, dtype=expected.dtype), *pieces])
        assert described.shape == tuple(expected.shape)
        assert str(expected.dtype) == f"torch.{described.dtype}"
        assert found.dtype == expected.dtype
        assert raw(found) == raw(expected), described.name
        assert all(piece.nbytes <= 1000 for piece in pieces)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_a_compressed_file_is_loaded_whole(tiny_llama_dir: Path, tmp_path: Path) -> None:
    expected = save_pickled(tiny_llama_dir, tmp_path / "pickled")
    path = tmp_path / "pickled" / SINGLE
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    report = ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted")
    assert "loaded whole" in report.notes[0]
    assert_equal(stored_tensors(tmp_path / "converted"), expected)


def test_only_one_old_file_is_in_memory_at_a_time(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("llama", tmp_path / "original")
    save_pickled(tmp_path / "original", tmp_path / "pickled", is_sharded=True, is_old=True)
    assert len(json.loads((tmp_path / "pickled" / INDEX).read_text())["weight_map"]) > 4
    held: list[int] = []
    original = PickledSource._whole

    def watch(source: PickledSource, path: Path) -> dict[str, torch.Tensor]:
        result = original(source, path)
        assert source._loaded is not None
        held.append(sum(tensor.nbytes for tensor in source._loaded[1].values()))
        return result

    monkeypatch.setattr(PickledSource, "_whole", watch)
    ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted")
    largest = max(path.stat().st_size for path in (tmp_path / "pickled").glob("*.bin"))
    assert 0 < max(held) <= largest
