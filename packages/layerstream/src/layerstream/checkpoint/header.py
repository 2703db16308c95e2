"""Find out where each tensor of a safetensors file lies.

Room: bytes. The header is read as hostile input: the safetensors library validates it (length, JSON,
overlaps, holes), and the offsets, which the library does not return, are read from the JSON and checked once
more. No weight is read.

Source: the format's description at https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, CheckpointNotFoundError, ShardCorruptError, UnsupportedFormatError
from ..spec.profiles import StoredTensor
from ..spec.sizes import DTYPE_BITS

TORCH_DTYPES: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""torch's dtype names by those of the safetensors format."""

LENGTH_BYTES = 8
"""The bytes at a file's start that say how long its header is."""

# The library's own limit, checked before the header is read: a false length must not make us allocate.
_MAX_HEADER_BYTES = 100_000_000


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """Return where every tensor of a safetensors file lies, in file order; no weight is read.

    Args:
        path: the file; it becomes each tensor's `path` as given, without resolving links.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file cannot be opened.
        ShardCorruptError: it is truncated, too long, or its header is wrong; with `path`.
        UnsupportedFormatError: a tensor has a dtype that torch has no whole-byte name for.
    """
    header, data_start = load_header(path)
    return header_entries(header, data_start, str(path))


def load_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the validated JSON header of a safetensors file and the byte at which its data starts.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file cannot be opened.
        ShardCorruptError: it is truncated, too long, or its header is wrong; with `path`.
    """
    try:
        raw, file_bytes = _read_raw_header(path)
        # Opening the file validates and maps it; no weight is read.
        with safe_open(str(path), framework="np"):
            pass
    except SafetensorError as error:
        raise _corrupt(path, _diagnosis(raw, file_bytes, str(error))) from error
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{path} does not exist; download the checkpoint again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    return _parse(raw, path), LENGTH_BYTES + len(raw)


def header_bytes_of(start: bytes, file_bytes: int, path: str) -> int:
    """Return how long the header is of a file that is not here, from its first `LENGTH_BYTES`.

    Raises:
        ShardCorruptError: the file's size does not allow it; with `path`.
    """
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES:
        raise _corrupt(path, f"only {len(start)} bytes came, of a file of {file_bytes} bytes")
    if length > min(_MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise _corrupt(path, f"its header claims {length} bytes, but the whole file has {file_bytes} bytes")
    return length


def describe_header(raw: bytes, file_bytes: int, path: str) -> tuple[StoredTensor, ...]:
    """Return where every tensor lies in a file that is not here yet, in file order.

    Args:
        raw: the file's header, without its length.
        file_bytes: the size of the whole file.
        path: where the file will be.

    Raises:
        ShardCorruptError: the header is malformed, or describes another size; with `path`.
        UnsupportedFormatError: a dtype is unknown.
    """
    tensors = header_entries(_parse(raw, Path(path)), LENGTH_BYTES + len(raw), path)
    described = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if described != file_bytes:
        raise _corrupt(path, f"its header describes {described} bytes, the file has {file_bytes}")
    return tensors


def header_entries(header: Mapping[str, Any], data_start: int, path: str) -> tuple[StoredTensor, ...]:
    """Return the tensors that a parsed header describes, in file order.

    Args:
        header: `dtype`, `shape` and `data_offsets` of each tensor; `__metadata__` is skipped.
        data_start: the byte of the file at which the data starts.
        path: the file, for the entries and the errors.

    Raises:
        ShardCorruptError: an entry is malformed, or its shape and its offsets disagree; with `path`.
        UnsupportedFormatError: a dtype is unknown.
    """
    entries = (
        _entry(name, entry, data_start, path) for name, entry in header.items() if name != "__metadata__"
    )
    return tuple(sorted(entries, key=lambda tensor: (tensor.offset, tensor.name)))


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait forever.
        raise CheckpointError(
            f"{path} is not a regular file; a checkpoint consists of plain safetensors files"
        )
    file_bytes = status.st_size
    with path.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        header_bytes = int.from_bytes(length, "little")
        if len(length) < LENGTH_BYTES:
            raise _corrupt(
                path, f"it has {file_bytes} bytes, but a header alone takes at least {LENGTH_BYTES}"
            )
        if header_bytes > min(_MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
            raise _corrupt(
                path, f"its header claims {header_bytes} bytes, but the whole file has {file_bytes} bytes"
            )
        return file.read(header_bytes), file_bytes


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(raw, object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    return header


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    # JSON silently keeps the last of two equal names; a file that hides a tensor this way cannot be trusted.
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _entry(name: str, entry: Any, data_start: int, path: str) -> StoredTensor:
    try:
        stored_dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        well_formed = all(type(number) is int and number >= 0 for number in numbers) and begin <= end
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"the header's entry of tensor {name!r} is malformed ({error!r})") from error
    if not well_formed:
        raise _corrupt(
            path,
            f"tensor {name!r} has shape {list(shape)} and data offsets {[begin, end]}, which make no sense",
        )
    dtype = TORCH_DTYPES.get(stored_dtype) if isinstance(stored_dtype, str) else None
    if dtype is None:
        raise UnsupportedFormatError(
            f"tensor {name!r} in {path} has dtype {stored_dtype}, which cannot be streamed; use a checkpoint "
            f"in one of {', '.join(TORCH_DTYPES)}"
        )
    expected_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if end - begin != expected_bytes:
        raise _corrupt(
            path,
            f"tensor {name!r} of shape {list(shape)} in {dtype} takes {expected_bytes} bytes, but its "
            f"offsets span {end - begin}",
        )
    return StoredTensor(
        name=name, dtype=dtype, shape=shape, path=path, offset=data_start + begin, num_bytes=expected_bytes
    )


def _diagnosis(raw: bytes, file_bytes: int, complaint: str) -> str:
    """Say in bytes what is wrong when the header tells the file's length; else repeat the complaint."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(raw).items() if name != "__metadata__"]
        expected_bytes = LENGTH_BYTES + len(raw) + max(ends, default=0)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return f"its header is unusable ({complaint})"
    if expected_bytes == file_bytes:
        return f"its header is wrong about where the tensors are ({complaint})"
    verdict = "truncated" if file_bytes < expected_bytes else "too long"
    return f"it is {verdict}: its header describes {expected_bytes} bytes, the file has {file_bytes}"


def _corrupt(path: Path | str, finding: str) -> ShardCorruptError:
    return ShardCorruptError(
        f"{path} is not a valid safetensors file: {finding}; download or copy it again", path=str(path)
    )
