"""Read pickled weights (`pytorch_model.bin`) without running code from them and without loading a file whole.

torch's weights-only unpickler tells names, shapes and places; the bytes are then read from the file in small
pieces. Only files that are stored in another way (before torch 1.6, or compressed) are loaded whole, one at a
time.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import skip_data

from ..checkpoint.header import TORCH_DTYPES
from ..errors import CheckpointError, ShardCorruptError, UnsupportedFormatError
from .source import PIECE_BYTES, SourceTensor

_DTYPES = frozenset(TORCH_DTYPES.values())
# How torch names what it refuses to import.
_CODE = re.compile(r"GLOBAL (\S+)")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_NOT_READABLE = (
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    MemoryError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the values of a tensor are: in a file, by byte if the file can be read in pieces."""

    path: Path
    tensor: torch.Tensor  # without values
    offset: int | None


class PickledSource:
    """The tensors of one pickled file or several."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read what the files hold; no weight is read.

        Raises:
            UnsupportedFormatError: a file holds something else than tensors by name.
            ShardCorruptError: a file is damaged; with `path`.
            CheckpointError: a file cannot be read, or two hold a tensor of the same name.
        """
        self._places: dict[str, _Place] = {}
        self._loaded: tuple[Path, dict[str, torch.Tensor]] | None = None
        tensors: list[SourceTensor] = []
        for path in paths:
            first_names: dict[object, str] = {}
            for name, place in _places_in(path):
                if name in self._places:
                    raise CheckpointError(
                        f"tensor {name!r} is in {self._places[name].path.name} and in {path.name}; "
                        "remove one of them"
                    )
                self._places[name] = place
                tensors.append(_described(name, place, first_names.setdefault(_identity(place), name)))
        self.tensors = tuple(tensors)

    @property
    def whole_file_bytes(self) -> int:
        """Bytes of the largest file that has to be loaded whole; 0 if there is none."""
        whole = {place.path for place in self._places.values() if place.offset is None}
        return max((path.stat().st_size for path in whole), default=0)

    def read(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the values of one tensor in row-major order, as flat pieces.

        Raises:
            ShardCorruptError: the file is shorter than it was.
            OSError: it cannot be read.
        """
        place = self._places[name]
        if place.offset is None:
            yield from (
                self._whole(place.path)[name].contiguous().reshape(-1).split(_values(place.tensor.dtype))
            )
        elif place.tensor.is_contiguous():
            yield from _read_pieces(place)
        else:
            yield from _read_view(place).split(_values(place.tensor.dtype))

    def _whole(self, path: Path) -> dict[str, torch.Tensor]:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None  # before the next file is loaded
            self._loaded = (path, _unpickled(path, map_location="cpu"))
        return self._loaded[1]


def _described(name: str, place: _Place, first_name: str) -> SourceTensor:
    return SourceTensor(
        name=name,
        dtype=_dtype_name(place.tensor.dtype),
        shape=tuple(place.tensor.shape),
        same_as=None if first_name == name else first_name,
    )


def _identity(place: _Place) -> object:
    """Return equal values for two tensors of a file that are the same bytes in the same order."""
    tensor = place.tensor
    storage = tensor.untyped_storage().data_ptr() if place.offset is None else place.offset
    if tensor.numel() == 0:
        return place
    return (storage, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _places_in(path: Path) -> Iterator[tuple[str, _Place]]:
    records = _stored_records(path)
    if records is None:
        with skip_data():
            found = _unpickled(path, map_location="cpu")
    else:
        found = _unpickled(path, map_location="meta")
    for name, tensor in found.items():
        _check_tensor(path, name, tensor)
        offset = None if records is None else _offset(path, name, tensor, records)
        yield name, _Place(path=path, tensor=tensor.detach(), offset=offset)


def _check_tensor(path: Path, name: object, tensor: object) -> None:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise UnsupportedFormatError(
            f"{path} does not hold tensors by name: {str(name)[:60]!r} is a {type(tensor).__name__}; is it a "
            "model's weights, or a training checkpoint that contains them?"
        )
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    if not plain or tensor.is_conj() or tensor.is_neg() or _dtype_name(tensor.dtype) not in _DTYPES:
        raise UnsupportedFormatError(
            f"tensor {name!r} in {path} is {_dtype_name(tensor.dtype)} with layout {tensor.layout}, which "
            "safetensors files cannot hold"
        )
    if name == "__metadata__" or not name.isprintable():
        raise UnsupportedFormatError(f"{path} holds a tensor with the impossible name {name[:60]!r}")


def _unpickled(path: Path, map_location: str) -> dict[Any, Any]:
    """Return what the file holds.

    Raises:
        UnsupportedFormatError: it holds more than tensors, or something else.
        ShardCorruptError: it is damaged; with `path`.
    """
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it reads all the same
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        asked = _CODE.search(str(error))
        if asked is None:
            raise _damaged(path, str(error).partition("WeightsUnpickler error:")[2] or str(error)) from error
        raise UnsupportedFormatError(
            f"{path} holds more than tensors: it asks for {asked[1]}, and reading it in full would run code "
            "from it, so it is refused. If you trust its author, load it with torch and save its state_dict "
            "alone"
        ) from error
    except _NOT_READABLE as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(found, dict) or not found:
        kind = "nothing" if not found else f"a {type(found).__name__}"
        raise UnsupportedFormatError(f"{path} holds {kind}, not tensors by name")
    return found


def _damaged(path: Path, finding: str) -> ShardCorruptError:
    finding = (finding.strip().splitlines() or ["nothing can be read"])[0]
    return ShardCorruptError(
        f"{path} is damaged, or no file of weights ({finding}); download or copy it again", path=str(path)
    )


def _stored_records(path: Path) -> dict[int, int] | None:
    """Return the length of every record of a torch file by its first byte.

    Returns:
        None when the file's bytes cannot be used as they are: it is no zip archive, it is compressed, or it
        comes from a big-endian machine.

    Raises:
        ShardCorruptError: the archive is damaged; with `path`.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = archive.infolist()
            order = [entry for entry in entries if entry.filename.endswith("/byteorder")]
            if any(archive.read(entry) != b"little" for entry in order):
                return None
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return None
            return {_first_byte(file, entry): entry.file_size for entry in entries}
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _first_byte(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return int(entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)


def _offset(path: Path, name: str, tensor: torch.Tensor, records: dict[int, int]) -> int:
    """Return the first byte of the tensor's storage in the file, checked against the archive's table.

    Raises:
        ShardCorruptError: the tensor's bytes are not all there; with `path`.
    """
    # torch tells the place of a storage that it leaves on the meta device (2.11 to 2.13)
    offset = tensor.untyped_storage()._checkpoint_offset
    assert offset is not None
    record_bytes, needed_bytes = records.get(offset, -1), _span_bytes(tensor)
    if needed_bytes > record_bytes or offset + record_bytes > path.stat().st_size:
        raise _damaged(
            path, f"tensor {name!r} needs {needed_bytes} bytes, but its record has {max(record_bytes, 0)}"
        )
    return offset


def _span_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes from the start of the storage to the tensor's last value."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + last + 1) * tensor.element_size()


def _read_pieces(place: _Place) -> Iterator[torch.Tensor]:
    tensor, item_bytes = place.tensor, place.tensor.element_size()
    if tensor.numel() == 0:
        return
    assert place.offset is not None
    piece_bytes = _values(tensor.dtype) * item_bytes
    left_bytes = tensor.numel() * item_bytes
    buffer = bytearray(min(piece_bytes, left_bytes))
    with place.path.open("rb", buffering=0) as file:
        file.seek(place.offset + int(tensor.storage_offset()) * item_bytes)
        while left_bytes:
            view = memoryview(buffer)[: min(len(buffer), left_bytes)]
            _fill(file, view, place.path)
            left_bytes -= len(view)
            yield torch.frombuffer(view, dtype=tensor.dtype)


def _read_view(place: _Place) -> torch.Tensor:
    """Return a tensor whose values are not in order in the file, in order and flat."""
    tensor, item_bytes = place.tensor, place.tensor.element_size()
    assert place.offset is not None
    start = int(tensor.storage_offset()) * item_bytes
    buffer = bytearray(_span_bytes(tensor) - start)
    with place.path.open("rb", buffering=0) as file:
        file.seek(place.offset + start)
        _fill(file, memoryview(buffer), place.path)
    span = torch.frombuffer(buffer, dtype=tensor.dtype)
    return span.as_strided(tensor.shape, tensor.stride()).contiguous().reshape(-1)


def _fill(file: Any, view: memoryview, path: Path) -> None:
    while view:
        num_bytes = file.readinto(view)
        if not num_bytes:
            raise ShardCorruptError(f"{path} became shorter while it was read", path=str(path))
        view = view[num_bytes:]


def _values(dtype: torch.dtype) -> int:
    return max(1, PIECE_BYTES // dtype.itemsize)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
