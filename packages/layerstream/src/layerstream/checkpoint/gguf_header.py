"""Find out what a GGUF file holds and where each of its tensors lies.

Room: bytes. The header is read as hostile input: every length and count is checked against the file before
anything is read or allocated. It knows no architecture, and no weight is read.

Source: the format's description at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, ShardCorruptError, UnsupportedFormatError
from ..spec.sizes import align_up

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""torch's names of the types that hold plain numbers."""

# By number: the name, the values of a block, and the bytes of a block.
_KINDS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_MOST_NAME_BYTES = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where one tensor of a GGUF file lies.

    Attributes:
        name: its name in the file.
        kind: how its values are stored, such as `"F16"` or `"Q4_K"`.
        shape: in torch's order: the last dimension is contiguous.
        path: the file.
        offset: its first byte in the file.
        row_bytes: bytes of one row; a row is made of whole blocks.
        num_bytes: all its bytes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    row_bytes: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """The metadata of a GGUF file, and where its tensors lie.

    Attributes:
        path: the file.
        metadata: numbers and texts by key; of an array, only its length.
        tensors: in the order of the file's table.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Return what a GGUF file holds and where; no weight is read.

    Raises:
        ShardCorruptError: the file is truncated, or its header makes no sense; with `path`.
        UnsupportedFormatError: its version, or the type of a tensor, is unknown.
        CheckpointError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return _Parser(path, file).parse()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


class _Parser:
    """Reads a header from the start of an open file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._file_bytes = path.stat().st_size
        self._position = 0

    def parse(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise self._corrupt("it does not begin with 'GGUF'")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise UnsupportedFormatError(
                f"{self._path} is GGUF version {version}; versions {' and '.join(map(str, _VERSIONS))} of "
                "little-endian files can be read: convert or download it again"
            )
        num_tensors, num_keys = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._count(num_keys, least_bytes=13)):
            key = self._string(_MOST_NAME_BYTES)
            metadata[key] = self._value(self._number("<I"))
        table = [self._table_entry() for _ in range(self._count(num_tensors, least_bytes=24))]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0:
            raise self._corrupt(f"its alignment is {alignment!r}")
        data_start = align_up(self._position, alignment)
        tensors = tuple(self._tensor(*entry, data_start) for entry in table)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise self._corrupt("a tensor's name occurs twice")
        return GgufHeader(path=self._path, metadata=metadata, tensors=tensors)

    def _take(self, num_bytes: int) -> bytes:
        if num_bytes > self._file_bytes - self._position:
            raise self._corrupt(
                f"it is truncated: its header needs {num_bytes} bytes at byte {self._position}, but the file "
                f"has {self._file_bytes}"
            )
        self._position += num_bytes
        return self._file.read(num_bytes)

    def _skip(self, num_bytes: int) -> None:
        if num_bytes > self._file_bytes - self._position:
            self._take(num_bytes)
        self._position += num_bytes
        self._file.seek(self._position)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, count: int, least_bytes: int) -> int:
        if count > (self._file_bytes - self._position) // least_bytes:
            raise self._corrupt(
                f"its header claims {count} entries, more than its {self._file_bytes} bytes hold"
            )
        return count

    def _string(self, most_bytes: int | None = None) -> str:
        num_bytes = self._number("<Q")
        if most_bytes is not None and num_bytes > most_bytes:
            raise self._corrupt(f"a name in its header has {num_bytes} bytes")
        return self._take(num_bytes).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._corrupt(f"its header holds a value of the unknown type {kind}")
        element, count = self._number("<I"), self._number("<Q")
        if element in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[element]))
        elif element == _STRING:
            for _ in range(self._count(count, least_bytes=8)):
                self._skip(self._number("<Q"))
        else:
            raise self._corrupt(f"its header holds an array of the unknown type {element}")
        return count

    def _table_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(_MOST_NAME_BYTES)
        num_dimensions = self._number("<I")
        if not 1 <= num_dimensions <= _MOST_DIMENSIONS:
            raise self._corrupt(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(num_dimensions)]))
        return name, shape, self._number("<I"), self._number("<Q")

    def _tensor(
        self, name: str, shape: tuple[int, ...], number: int, offset: int, data_start: int
    ) -> GgufTensor:
        if number not in _KINDS:
            known = ", ".join(kind for kind, _, _ in _KINDS.values())
            raise UnsupportedFormatError(
                f"tensor {name!r} in {self._path} has type number {number}; these types can be read: {known}"
            )
        kind, block, block_bytes = _KINDS[number]
        if shape[-1] % block:
            raise self._corrupt(f"tensor {name!r} has rows of {shape[-1]} values in {kind} blocks of {block}")
        row_bytes = shape[-1] // block * block_bytes
        num_bytes, start = math.prod(shape[:-1]) * row_bytes, data_start + offset
        if start + num_bytes > self._file_bytes:
            raise self._corrupt(
                f"it is truncated: tensor {name!r} ends at byte {start + num_bytes}, but the file has "
                f"{self._file_bytes}"
            )
        return GgufTensor(
            name=name,
            kind=kind,
            shape=shape,
            path=self._path,
            offset=start,
            row_bytes=row_bytes,
            num_bytes=num_bytes,
        )

    def _corrupt(self, finding: str) -> ShardCorruptError:
        return ShardCorruptError(
            f"{self._path} is not a valid GGUF file: {finding}; download or copy it again",
            path=str(self._path),
        )
