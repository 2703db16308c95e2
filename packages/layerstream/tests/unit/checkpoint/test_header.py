"""Headers of valid files; invalid ones are in `faults/test_bad_checkpoints.py`."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from layerstream.checkpoint.header import TORCH_DTYPES, header_entries, read_header
from layerstream.errors import ShardCorruptError
from layerstream.spec.sizes import DTYPE_BITS


def test_the_bytes_at_a_tensors_place_are_the_tensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.standard_normal((5, 7)).astype(np.float32),
        "half": rng.standard_normal(33).astype(np.float16),
        "scalar": np.array(3.5, dtype=np.float64),
        "empty": np.zeros((0, 4), dtype=np.int64),
        "flags": np.array([True, False, True]),
    }
    path = tmp_path / "x.safetensors"
    save_file(arrays, path)
    content = path.read_bytes()
    entries = read_header(path)
    assert {entry.name for entry in entries} == set(arrays)
    for entry in entries:
        array = arrays[entry.name]
        assert (entry.shape, entry.dtype, entry.path) == (array.shape, array.dtype.name, str(path))
        assert content[entry.offset : entry.offset + entry.num_bytes] == array.tobytes()


def test_tensors_come_in_file_order(tmp_path: Path) -> None:
    save_file(
        {name: np.zeros(size, np.float32) for name, size in (("z", 1), ("a", 9), ("m", 4))},
        tmp_path / "x.safetensors",
    )
    entries = read_header(tmp_path / "x.safetensors")
    assert [entry.offset for entry in entries] == sorted(entry.offset for entry in entries)


@pytest.mark.parametrize("stored", sorted(TORCH_DTYPES))
def test_every_named_dtype_is_accepted_by_the_library_and_by_us(stored: str, tmp_path: Path) -> None:
    num_bytes = 4 * DTYPE_BITS[TORCH_DTYPES[stored]] // 8
    header = json.dumps({"x": {"dtype": stored, "shape": [4], "data_offsets": [0, num_bytes]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(num_bytes))
    (entry,) = read_header(path)
    assert (entry.dtype, entry.num_bytes, entry.offset) == (TORCH_DTYPES[stored], num_bytes, 8 + len(header))


def test_metadata_is_not_listed_as_a_tensor(tmp_path: Path) -> None:
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert [entry.name for entry in read_header(tmp_path / "x.safetensors")] == ["x"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    entry=_json
    | st.fixed_dictionaries(
        {"dtype": st.just("F32"), "shape": _json, "data_offsets": st.lists(st.integers() | _json, max_size=3)}
    )
)
def test_a_malformed_entry_raises_only_shard_corrupt_error(entry: object) -> None:
    with contextlib.suppress(ShardCorruptError):
        (tensor,) = header_entries({"x": entry}, 8, "x.safetensors")
        assert tensor.num_bytes == 4 * math.prod(tensor.shape)
