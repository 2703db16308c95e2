"""Damaged, foreign and hostile checkpoints: opening each raises one clear typed error."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from layerstream.checkpoint.header import read_header
from layerstream.checkpoint.hub import resolve_model
from layerstream.checkpoint.index import open_checkpoint
from layerstream.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ShardCorruptError,
    TensorMissingError,
    UnsupportedFormatError,
)

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint directory with a config and no weights."""
    home = tmp_path / "checkpoint"
    home.mkdir()
    (home / "config.json").write_text("{}")
    return home


def write_weights(path: Path, *names: str) -> Path:
    save_file({name: np.arange(100, dtype=np.float32) for name in names or ("w",)}, path)
    return path


def write_raw(path: Path, header: Any, num_bytes: int = 8) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(num_bytes))
    return path


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_truncated_shard_is_refused_with_its_path_and_both_sizes(directory: Path) -> None:
    path = write_weights(directory / "model.safetensors")
    whole = path.stat().st_size
    os.truncate(path, whole - 13)
    with pytest.raises(ShardCorruptError, match=f"truncated.*{whole} bytes.*{whole - 13}.*again") as caught:
        open_checkpoint(directory)
    assert caught.value.path == str(path)


def test_an_overlong_shard_is_refused_with_its_path_and_both_sizes(directory: Path) -> None:
    path = write_weights(directory / "model.safetensors")
    whole = path.stat().st_size
    os.truncate(path, whole + 5)
    with pytest.raises(ShardCorruptError, match=f"too long.*{whole} bytes.*{whole + 5}") as caught:
        open_checkpoint(directory)
    assert caught.value.path == str(path)


def tensor(begin: int, end: int, shape: tuple[int, ...] = (4,), dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        pytest.param({"a": tensor(0, 4), "b": tensor(2, 6)}, 6, id="overlapping"),
        pytest.param({"a": tensor(0, 4), "b": tensor(6, 10)}, 10, id="a hole"),
        pytest.param({"a": tensor(0, 8)}, 8, id="shape smaller than offsets"),
        pytest.param({"a": tensor(0, 4, dtype="F32")}, 4, id="dtype wider than offsets"),
        pytest.param({"a": tensor(4, 0)}, 4, id="ends before it begins"),
        pytest.param({"a": tensor(-4, 0)}, 4, id="begins before the data"),
        pytest.param({"a": tensor(0, 2**62, shape=(2**62,))}, 8, id="absurdly long"),
        pytest.param({"a": {"dtype": "U8", "shape": [8]}}, 8, id="no offsets"),
        pytest.param({"a": tensor(0, 8, shape=(8,), dtype="Q9")}, 8, id="no such dtype"),
        pytest.param([1, 2, 3], 8, id="a list"),
        pytest.param(b"{" * 50, 8, id="not JSON"),
        pytest.param(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, 8, id="nested too deeply"),
        pytest.param(
            b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}',
            8,
            id="a name twice",
        ),
    ],
)
def test_a_wrong_header_is_refused_with_its_path(header: Any, num_bytes: int, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", header, num_bytes)
    with pytest.raises(ShardCorruptError) as caught:
        read_header(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\1\2\3", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"]
)
def test_a_file_too_short_for_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ShardCorruptError, match=f"{len(content)} "):
        read_header(path)


def test_a_dtype_of_less_than_a_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"a": tensor(0, 8, shape=(16,), dtype="F4")})
    with pytest.raises(UnsupportedFormatError, match=r"'a'.*F4"):
        read_header(path)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="regular file"):
        read_header(tmp_path / "x.safetensors")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"x\.safetensors"):
        read_header(tmp_path / "x.safetensors")


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_a_directory_without_weights_is_refused(directory: Path) -> None:
    (directory / "training_args.bin").touch()
    with pytest.raises(CheckpointNotFoundError, match="no weights"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth", "m.ckpt"],
)
def test_pickled_weights_are_refused_with_the_way_to_convert_them(name: str, directory: Path) -> None:
    (directory / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedFormatError, match=r"pickled.*little memory") as caught:
        open_checkpoint(directory)
    assert name in str(caught.value)
    assert f"layerstream convert {directory} TARGET" in str(caught.value)


def test_gguf_weights_are_refused_with_the_way_to_convert_them(directory: Path) -> None:
    (directory / "model.Q4_1.gguf").touch()
    with pytest.raises(UnsupportedFormatError, match=r"model\.Q4_1\.gguf") as caught:
        open_checkpoint(directory)
    assert f"layerstream convert {directory} TARGET" in str(caught.value)


def test_a_gguf_file_needs_no_config_to_be_recognized(tmp_path: Path) -> None:
    (tmp_path / "model.Q4_1.gguf").touch()
    with pytest.raises(UnsupportedFormatError, match="layerstream convert"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["model.Q4_1.gguf", "pytorch_model.bin"])
def test_a_file_of_other_weights_is_refused_with_the_way_to_convert_it(file: str, tmp_path: Path) -> None:
    path = tmp_path / "my models" / file
    path.parent.mkdir()
    path.touch()
    with pytest.raises(UnsupportedFormatError) as caught:
        resolve_model(str(path), weights=True)
    assert f"layerstream convert '{path}' TARGET" in str(caught.value)


def test_several_files_without_an_index_are_ambiguous(directory: Path) -> None:
    write_weights(directory / "one.safetensors")
    write_weights(directory / "two.safetensors")
    with pytest.raises(
        CheckpointError, match=r"2 safetensors files.*one\.safetensors, two\.safetensors.*index"
    ):
        open_checkpoint(directory)


def test_an_index_that_names_a_missing_file_is_refused_with_file_and_tensors(directory: Path) -> None:
    write_weights(directory / SHARD)
    write_index(directory, {"w": SHARD, "v": "lost.safetensors", "u": "lost.safetensors"})
    with pytest.raises(
        TensorMissingError, match=r"lost\.safetensors, which is missing; it should hold v, u"
    ) as caught:
        open_checkpoint(directory)
    assert caught.value.names == ("v", "u")


def test_an_index_that_maps_a_tensor_to_the_wrong_file_is_refused(directory: Path) -> None:
    write_weights(directory / "1.safetensors", "a")
    write_weights(directory / "2.safetensors", "b")
    write_index(directory, {"a": "2.safetensors", "b": "2.safetensors", "c": "1.safetensors"})
    with pytest.raises(TensorMissingError, match=r"2\.safetensors holds a, c") as caught:
        open_checkpoint(directory)
    assert caught.value.names == ("a", "c")


def test_a_tensor_in_two_shards_is_refused(directory: Path) -> None:
    write_weights(directory / "1.safetensors", "a", "same")
    write_weights(directory / "2.safetensors", "b", "same")
    write_index(directory, {"a": "1.safetensors", "b": "2.safetensors", "same": "2.safetensors"})
    with pytest.raises(CheckpointError, match=r"'same'.*1\.safetensors.*2\.safetensors"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": ["w"]}',
        b'{"weight_map": {"w": 3}}',
        b"\xff\xfe",
        b'{"weight_map": {"w": "x"}, "metadata": 3}',
        b"[" * 100000,
    ],
)
def test_a_malformed_index_is_refused_with_its_path(content: bytes, directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_bytes(content)
    with pytest.raises(ShardCorruptError) as caught:
        open_checkpoint(directory)
    assert caught.value.path == str(index)


def outside_by_dots(directory: Path) -> str:
    write_weights(directory.parent / "outside.safetensors")
    return "../outside.safetensors"


def outside_by_absolute_path(directory: Path) -> str:
    return str(write_weights(directory.parent / "outside.safetensors"))


def outside_by_link(directory: Path) -> str:
    write_weights(directory.parent / "outside.safetensors")
    (directory / SHARD).symlink_to(directory.parent / "outside.safetensors")
    return SHARD


def outside_by_linked_directory(directory: Path) -> str:
    (directory.parent / "elsewhere").mkdir()
    write_weights(directory.parent / "elsewhere" / "outside.safetensors")
    (directory / "sub").symlink_to(directory.parent / "elsewhere")
    return "sub/outside.safetensors"


def link_to_itself(directory: Path) -> str:
    (directory / SHARD).symlink_to(SHARD)
    return SHARD


def name_with_a_nul(directory: Path) -> str:
    return "a\0b.safetensors"


WAYS_OUT = [
    outside_by_dots,
    outside_by_absolute_path,
    outside_by_link,
    outside_by_linked_directory,
    link_to_itself,
    name_with_a_nul,
]


@pytest.mark.parametrize("way_out", WAYS_OUT)
def test_a_shard_outside_the_directory_is_refused(way_out: Callable[[Path], str], directory: Path) -> None:
    write_index(directory, {"w": way_out(directory)})
    with pytest.raises(CheckpointError):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    "way_out", [outside_by_dots, outside_by_absolute_path, outside_by_link, outside_by_linked_directory]
)
def test_the_refusal_of_a_shard_outside_says_so(way_out: Callable[[Path], str], directory: Path) -> None:
    write_index(directory, {"w": way_out(directory)})
    with pytest.raises(CheckpointError, match="leads out of it"):
        open_checkpoint(directory)


def test_a_single_file_linked_from_outside_is_refused(directory: Path) -> None:
    write_weights(directory.parent / "outside.safetensors")
    (directory / "model.safetensors").symlink_to("../outside.safetensors")
    with pytest.raises(CheckpointError, match="leads out of it"):
        open_checkpoint(directory)


def test_a_hub_snapshot_may_not_leave_its_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    write_weights(tmp_path / "outside.safetensors")
    (snapshot / "model.safetensors").symlink_to("../../../outside.safetensors")
    with pytest.raises(CheckpointError, match="leads out of it"):
        open_checkpoint(snapshot)


def test_a_hub_snapshots_index_may_not_name_another_snapshots_file(tmp_path: Path) -> None:
    snapshots = tmp_path / "models--org--name" / "snapshots"
    for revision in ("0123abc", "4567def"):
        (snapshots / revision).mkdir(parents=True)
    (snapshots / "0123abc" / "config.json").write_text("{}")
    write_weights(snapshots / "4567def" / "x.safetensors")
    write_index(snapshots / "0123abc", {"w": "../4567def/x.safetensors"})
    with pytest.raises(CheckpointError, match="leads out of it"):
        open_checkpoint(snapshots / "0123abc")
