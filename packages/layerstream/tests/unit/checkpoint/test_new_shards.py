"""Which tensor goes into which file, and that the files are what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layerstream.checkpoint.header import read_header
from layerstream.checkpoint.new_shards import NewTensor, index_text, plan_shards, write_shard
from layerstream.errors import CheckpointError


def tensor(name: str, num_bytes: int, dtype: str = "uint8") -> NewTensor:
    return NewTensor(name=name, dtype=dtype, shape=(num_bytes,))


@pytest.mark.parametrize(
    ("sizes", "files"),
    [
        ([6, 6, 6], [["0", "1", "2"]]),
        ([10, 11, 10], [["0"], ["1"], ["2"]]),
        ([10, 10, 1], [["0", "1"], ["2"]]),
        ([99, 1, 2], [["0"], ["1", "2"]]),
        ([1, 99, 2], [["0"], ["1"], ["2"]]),
        ([0, 20, 0], [["0", "1", "2"]]),
    ],
)
def test_a_file_is_closed_before_it_grows_too_large(sizes: list[int], files: list[list[str]]) -> None:
    shards = plan_shards([tensor(str(number), size) for number, size in enumerate(sizes)], 20)
    assert [[entry.name for entry in shard.tensors] for shard in shards] == files
    count = len(files)
    expected = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    assert [shard.file for shard in shards] == (["model.safetensors"] if count == 1 else expected)


def test_the_library_and_our_reader_read_what_is_written(tmp_path: Path) -> None:
    values = {
        "flags": torch.tensor([True, False, True]),
        "halves": torch.arange(5).half(),
        'a "quoted" näme': torch.arange(6, dtype=torch.float64).reshape(2, 3),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(7, dtype=torch.int32),
    }
    described = [
        NewTensor(name=name, dtype=str(value.dtype)[6:], shape=tuple(value.shape))
        for name, value in values.items()
    ]
    (shard,) = plan_shards(described, 10**6, tmp_path)
    pieces = [bytes(values[entry.name].reshape(-1).view(torch.uint8).numpy()) for entry in shard.tensors]
    write_shard(tmp_path, shard, pieces)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())
    assert set(read_header(tmp_path / "model.safetensors")) == set(shard.tensors)
    assert all(entry.offset % getattr(torch, entry.dtype).itemsize == 0 for entry in shard.tensors)


@pytest.mark.parametrize("given", [b"", b"123", b"12345"])
def test_the_wrong_number_of_bytes_leaves_no_file(given: bytes, tmp_path: Path) -> None:
    (shard,) = plan_shards([tensor("four", 4)], 10)
    with pytest.raises(CheckpointError, match="came from the source"):
        write_shard(tmp_path, shard, [given])
    assert list(tmp_path.iterdir()) == []


def test_the_index_names_the_file_of_every_tensor() -> None:
    shards = plan_shards([tensor("a", 3), tensor("b", 3)], 4)
    assert '"total_size": 6' in index_text(shards)
    assert '"b": "model-00002-of-00002.safetensors"' in index_text(shards)
