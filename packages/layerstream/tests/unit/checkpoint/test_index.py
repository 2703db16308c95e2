"""Tables of contents of valid checkpoint directories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from layerstream.checkpoint.index import open_checkpoint

ONE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
TWO = {"b": np.arange(4, dtype=np.int64)}


def write_sharded(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    save_file(ONE, directory / "model-00001-of-00002.safetensors")
    save_file(TWO, directory / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = {"metadata": {"total_size": 56}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_sharded_checkpoint_lists_all_shards_tensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_sharded(tmp_path))
    assert checkpoint.shards == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert set(checkpoint.tensors) == {"a", "b"}
    assert checkpoint.metadata == {"total_size": 56}
    assert (checkpoint.name, checkpoint.directory) == (str(tmp_path), tmp_path)
    b = checkpoint.tensors["b"]
    assert Path(b.path).read_bytes()[b.offset : b.offset + b.num_bytes] == TWO["b"].tobytes()


def test_tensors_missing_from_the_index_are_still_found(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({**TWO, "c": np.zeros(1, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b", "c"}


def test_a_single_file_takes_precedence_over_the_index_as_in_transformers(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"only": np.zeros(2, np.float32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path, name="a name")
    assert (checkpoint.name, checkpoint.shards, checkpoint.metadata) == (
        "a name",
        ("model.safetensors",),
        {"format": "pt"},
    )
    assert set(checkpoint.tensors) == {"only"}


def test_a_single_safetensors_file_of_another_name_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file(ONE, tmp_path / "weights.safetensors")
    save_file(TWO, tmp_path / "adapter_model.safetensors")
    assert open_checkpoint(tmp_path).shards == ("weights.safetensors",)


def test_a_directory_can_be_opened_through_a_link(tmp_path: Path) -> None:
    write_sharded(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert set(open_checkpoint(tmp_path / "link").tensors) == {"a", "b"}


def test_links_into_the_blobs_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = write_sharded(repository / "snapshots" / "0123abc")
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(repository / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    checkpoint = open_checkpoint(snapshot)
    assert set(checkpoint.tensors) == {"a", "b"}
    assert Path(checkpoint.tensors["a"].path).parent == snapshot


def test_eighty_shards_open_without_reading_a_weight(tmp_path: Path) -> None:
    # Sparse files of 1 GiB each: reading them would exceed the test's time limit.
    (tmp_path / "config.json").write_text("{}")
    weight_map = {}
    for number in range(80):
        shard = f"model-{number:05d}.safetensors"
        header = json.dumps(
            {f"w{number}": {"dtype": "U8", "shape": [2**30], "data_offsets": [0, 2**30]}}
        ).encode()
        with (tmp_path / shard).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2**30)
        weight_map[f"w{number}"] = shard
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert sum(tensor.num_bytes for tensor in open_checkpoint(tmp_path).tensors.values()) == 80 * 2**30
