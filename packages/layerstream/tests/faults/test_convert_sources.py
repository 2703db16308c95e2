"""What cannot be converted is refused before anything is written, and the refusal says what to do."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.damage import rewrite_config
from kit.families import GQA, save_tiny
from kit.gguf_files import TOKENS, tiny_model, write_gguf
from kit.pickled_weights import INDEX, SINGLE, save_bin, save_pickled
from transformers import AutoConfig

import layerstream as ls
from layerstream.checkpoint.gguf_header import read_gguf_header
from layerstream.conversion import convert

Damage = Callable[[Path], None]


@pytest.fixture
def pickled(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    save_pickled(tiny_llama_dir, tmp_path / "pickled")
    return tmp_path / "pickled"


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    config = AutoConfig.for_model("llama", **{**GQA, "vocab_size": len(TOKENS), "num_hidden_layers": 1})
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return write_gguf(tiny_model(config), path, "llama").read_bytes()


def assert_refused(source: Path, error: type[Exception], match: str, **options: Any) -> str:
    target = source.parent / "converted"
    with pytest.raises(error, match=match) as caught:
        ls.convert_checkpoint(source, target, **options)
    assert not target.exists()
    return str(caught.value)


class RunsCode:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_file_that_would_run_code_is_refused_and_runs_none(is_old: bool, pickled: Path) -> None:
    proof = pickled.parent / "code ran"
    torch.save(
        {"w": torch.zeros(3), "x": RunsCode(proof)},
        pickled / SINGLE,
        _use_new_zipfile_serialization=not is_old,
    )
    said = assert_refused(pickled, ls.UnsupportedFormatError, "would run code")
    assert "mkdir" in said
    assert "weights_only=False" not in said
    assert not proof.exists()


def test_a_bare_pickle_that_would_run_code_is_refused_and_runs_none(pickled: Path) -> None:
    proof = pickled.parent / "code ran"
    (pickled / SINGLE).write_bytes(pickle.dumps(RunsCode(proof), protocol=2))
    assert_refused(pickled, ls.UnsupportedFormatError, "mkdir")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {"w": torch.zeros(3)}}, "'model' is a dict"),
        ({3: torch.zeros(3)}, "'3' is a Tensor"),
        ([torch.zeros(3)], "holds a list"),
        ({}, "holds nothing"),
        ({"__metadata__": torch.zeros(3)}, "impossible name"),
        ({"w": torch.zeros(3, 3).to_sparse()}, "layout torch.sparse_coo"),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(content: Any, says: str, pickled: Path) -> None:
    torch.save(content, pickled / SINGLE)
    assert_refused(pickled, ls.UnsupportedFormatError, says)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_truncated_pickled_file_is_refused(
    keep: float, is_old: bool, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    save_pickled(tiny_llama_dir, tmp_path / "pickled", is_old=is_old)
    path = tmp_path / "pickled" / SINGLE
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ls.CheckpointError, match=r"pytorch_model\.bin|cannot be written"):
        ls.convert_checkpoint(tmp_path / "pickled", tmp_path / "converted")
    assert not (tmp_path / "converted" / "config.json").exists()


def test_a_record_that_is_shorter_than_its_tensor_is_refused(pickled: Path) -> None:
    path = pickled / SINGLE
    save_bin({"a": torch.zeros(1000), "b": torch.ones(1000)}, path)
    content = path.read_bytes()
    # the tensor is made of more values than its storage has
    grown = content.replace(struct.pack("<BH", 0x4D, 1000), struct.pack("<BH", 0x4D, 1100))
    assert len(grown) == len(content)
    path.write_bytes(grown)
    with pytest.raises(ls.ShardCorruptError):
        ls.convert_checkpoint(pickled, pickled.parent / "converted")


def test_weights_of_another_model_are_refused_before_anything_is_written(pickled: Path) -> None:
    rewrite_config(pickled, num_hidden_layers=5)
    assert_refused(pickled, ls.TensorMissingError, r"model\.layers\.4")
    rewrite_config(pickled, num_hidden_layers=4, hidden_size=128)
    assert_refused(pickled, ls.CheckpointError, "has shape")


def test_a_config_that_is_missing_is_named(pickled: Path) -> None:
    (pickled / "config.json").unlink()
    assert_refused(pickled, ls.CheckpointNotFoundError, r"no config\.json")


def test_files_and_tensors_that_the_index_promises_are_missed(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "original")
    source = tmp_path / "pickled"
    save_pickled(tmp_path / "original", source, is_sharded=True)
    index = json.loads((source / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    index["weight_map"]["one.more"] = first
    (source / INDEX).write_text(json.dumps(index))
    assert_refused(source, ls.TensorMissingError, r"one\.more")
    (source / second).unlink()
    assert_refused(source, ls.TensorMissingError, second)


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, tiny_llama_dir: Path) -> None:
    save_pickled(tiny_llama_dir, tmp_path / "pickled")
    (tmp_path / "pickled" / SINGLE).rename(tmp_path / "outside.bin")
    (tmp_path / "pickled" / INDEX).write_text(json.dumps({"weight_map": {"w": "../outside.bin"}}))
    assert_refused(tmp_path / "pickled", ls.CheckpointError, "leads out")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "original")
    tensors = save_pickled(tmp_path / "original", tmp_path / "pickled", is_sharded=True)
    name = next(iter(tensors))
    last = sorted((tmp_path / "pickled").glob("*.bin"))[-1]
    save_bin({**torch.load(last), name: tensors[name]}, last)
    assert_refused(tmp_path / "pickled", ls.CheckpointError, "is in pytorch_model-00001.* and in")


def test_numbers_too_large_for_the_dtype_are_refused(pickled: Path) -> None:
    tensors = torch.load(pickled / SINGLE)
    tensors["model.norm.weight"][3] = 70000.0
    save_bin(tensors, pickled / SINGLE)
    with pytest.raises(ls.UnsupportedFormatError, match=r"model\.norm\.weight.*7e\+04.*bfloat16"):
        ls.convert_checkpoint(pickled, pickled.parent / "converted", dtype="float16")
    assert not (pickled.parent / "converted" / "model.safetensors").exists()


def test_a_dtype_for_nothing_is_refused(pickled: Path) -> None:
    assert_refused(pickled, ls.PlanError, "bfloat16", dtype="int8")


def test_safetensors_need_no_conversion(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ls.UnsupportedFormatError, match="no conversion: layerstream run"):
        ls.convert_checkpoint(tiny_llama_dir, tmp_path / "converted")


def test_an_empty_folder_and_one_with_two_models_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "models"
    source.mkdir()
    assert_refused(source, ls.CheckpointNotFoundError, "no weights to convert")
    for name in ("a.Q4_0.gguf", "a.Q8_0.gguf", "mmproj.md"):
        (source / name).touch()
    assert_refused(source, ls.CheckpointError, r"a\.Q4_0\.gguf, a\.Q8_0\.gguf.*--gguf-file NAME")
    assert_refused(source, ls.CheckpointNotFoundError, r"b\.gguf", gguf_file="b.gguf")
    assert_refused(source, ls.UnsupportedFormatError, "cannot be converted", gguf_file="mmproj.md")
    assert_refused(tmp_path / "absent", ls.CheckpointNotFoundError, "no folder or file")


def test_a_part_of_a_gguf_model_that_is_missing_is_named(tmp_path: Path, gguf_bytes: bytes) -> None:
    source = tmp_path / "parts"
    source.mkdir()
    (source / "m-00001-of-00002.gguf").write_bytes(gguf_bytes)
    assert_refused(source, ls.TensorMissingError, "m-00002-of-00002")


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_a_truncated_gguf_file_is_refused(keep: float, gguf_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes[: int(keep * len(gguf_bytes))])
    assert_refused(path, ls.ShardCorruptError, "truncated|more than its")


def overwrite(offset: int, form: str, value: int) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        struct.pack_into(form, content, offset, value)
        path.write_bytes(content)

    return damage


# the first key, general.architecture, begins at byte 24
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (overwrite(0, "<I", 0), "does not begin with 'GGUF'"),
        (overwrite(4, "<I", 1), "version 1"),
        (overwrite(4, ">I", 3), "little-endian"),
        (overwrite(8, "<Q", 2**60), "claims"),
        (overwrite(16, "<Q", 2**60), "claims"),
        (overwrite(24, "<Q", 2**63), "a name in its header"),
        (overwrite(52, "<I", 77), "unknown type 77"),
        (overwrite(56, "<Q", 2**63), "truncated"),
    ],
)
def test_a_damaged_gguf_header_is_refused(
    damage: Damage, says: str, gguf_bytes: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes)
    damage(path)
    assert_refused(path, ls.CheckpointError, says)


def test_every_damaged_byte_of_a_gguf_header_is_an_error_of_ours_or_none(
    gguf_bytes: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    header_bytes = gguf_bytes.index(b"output_norm") + 64
    for offset in range(header_bytes):
        content = bytearray(gguf_bytes)
        content[offset] ^= 0xFF
        path.write_bytes(content)
        with suppress(ls.CheckpointError):
            read_gguf_header(path)


def test_an_architecture_without_rules_is_refused_with_the_list(tmp_path: Path) -> None:
    config = AutoConfig.for_model("starcoder2", **{**GQA, "num_hidden_layers": 1})
    config.rms_norm_eps = 1e-5
    path = write_gguf(tiny_model(config), tmp_path / "model.gguf", "starcoder2")
    said = assert_refused(path, ls.UnsupportedFormatError, "'starcoder2'")
    assert "gemma2, gemma3, llama, phi3, qwen2, qwen2moe, qwen3, qwen3moe" in said


def test_a_tensor_that_the_architecture_does_not_have_is_refused(tmp_path: Path) -> None:
    model = tiny_model(AutoConfig.for_model("llama", **GQA))
    extra = {"blk.0.ffn_gate_exps.weight": torch.zeros(2, 32, 32).numpy()}
    path = write_gguf(model, tmp_path / "model.gguf", "llama", extra=extra)
    assert_refused(path, ls.UnsupportedFormatError, r"1 tensors that a llama.*ffn_gate_exps")


def test_rotary_factors_are_left_out_and_the_report_says_so(tmp_path: Path) -> None:
    model = tiny_model(AutoConfig.for_model("llama", **GQA))
    extra = {"rope_freqs.weight": torch.ones(8).numpy()}
    path = write_gguf(model, tmp_path / "model.gguf", "llama", extra=extra)
    report = ls.convert_checkpoint(path, tmp_path / "converted")
    assert any("rotary" in note and "config.json" in note for note in report.notes)
    assert any("no tokenizer" in note for note in report.notes)


def test_without_the_package_gguf_the_error_says_what_to_install(
    gguf_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes)
    assert_refused(path, ls.UnsupportedFormatError, "pip install gguf")
