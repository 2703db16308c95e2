"""A fingerprint is equal for equal contents, wherever they are, and differs for any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import layerstream as ls
from layerstream.checkpoint.fingerprint import fingerprint_model


@pytest.fixture
def checkpoint(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def changed_parts(directory: Path, before: dict[str, str]) -> list[str]:
    after = fingerprint_model(str(directory))
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def test_a_copy_in_another_place_has_the_same_fingerprint(checkpoint: Path, tiny_llama_dir: Path) -> None:
    (checkpoint / "notes.md").write_text("not part of the model")
    found = fingerprint_model(str(checkpoint))
    assert found == fingerprint_model(str(tiny_llama_dir))
    assert {"config.json", "tokenizer.json", "safetensors headers", "weights"} <= set(found)


def test_other_weights_of_the_same_shapes_are_told_by_their_values(checkpoint: Path) -> None:
    before = fingerprint_model(str(checkpoint))
    (path,) = checkpoint.glob("*.safetensors")
    tensors = load_file(path)
    save_file(
        {name: tensor + 1e-4 if "q_proj" in name else tensor for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    assert changed_parts(checkpoint, before) == ["weights"]


def test_another_dtype_is_told_by_the_headers(checkpoint: Path) -> None:
    before = fingerprint_model(str(checkpoint))
    (path,) = checkpoint.glob("*.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}, path)
    assert changed_parts(checkpoint, before) == ["safetensors headers", "weights"]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_an_edited_small_file_is_named(name: str, checkpoint: Path) -> None:
    path = checkpoint / name
    before = fingerprint_model(str(checkpoint))
    path.write_text(json.dumps({**json.loads(path.read_text()), "_note": 1}))
    assert changed_parts(checkpoint, before) == [name]


def test_a_new_chat_template_is_named(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    before = fingerprint_model(str(checkpoint))
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert changed_parts(checkpoint, before) == ["chat_template.jinja"]


def test_a_snapshot_of_the_hub_is_its_commit_whatever_has_been_downloaded(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    shutil.copy(tiny_llama_dir / "config.json", snapshot)
    assert fingerprint_model(str(snapshot)) == {"commit": "0123abc"}


def test_a_directory_without_weights_is_an_error(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ls.CheckpointNotFoundError, match="has no weights"):
        fingerprint_model(str(checkpoint))
