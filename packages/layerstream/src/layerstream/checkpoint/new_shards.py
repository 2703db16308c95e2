"""Lay out and write safetensors files.

Room: bytes. `plan_shards` decides which tensor goes where from names, dtypes and shapes alone; `write_shard`
carries it out with the bytes that it is given. A file appears whole or not at all.

Source: the format's description at https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..spec.profiles import StoredTensor
from ..spec.sizes import align_up, dtype_bytes
from .header import TORCH_DTYPES
from .index import SINGLE_NAME

Bytes = bytes | memoryview

_LENGTH_BYTES = 8
_STORED_DTYPES = {dtype: stored for stored, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor that is to be written.

    Attributes:
        name: its name.
        dtype: torch's name of its dtype.
        shape: its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return dtype_bytes(self.dtype, math.prod(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewShard:
    """A safetensors file that is to be written.

    Attributes:
        file: its name.
        header: its first bytes: the length and the header.
        tensors: what it holds, in the order of the file.
    """

    file: str
    header: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)


def plan_shards(
    tensors: Sequence[NewTensor], max_shard_bytes: int, directory: Path = Path()
) -> tuple[NewShard, ...]:
    """Return the files that hold `tensors`, in their order.

    A file is closed before it would exceed the maximum; a tensor that is larger gets a file of its own.
    Within a file, the widest dtypes come first, so that every tensor is aligned to its own dtype.

    Args:
        tensors: what is to be written.
        max_shard_bytes: of the tensors of one file.
        directory: where the files will be; for the tensors' `path`.
    """
    groups: list[list[NewTensor]] = []
    group_bytes = 0
    for tensor in tensors:
        if not groups or group_bytes + tensor.num_bytes > max_shard_bytes:
            groups.append([])
            group_bytes = 0
        groups[-1].append(tensor)
        group_bytes += tensor.num_bytes
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = [SINGLE_NAME]
    return tuple(_lay_out(directory / name, group) for name, group in zip(names, groups, strict=True))


def index_text(shards: Sequence[NewShard]) -> str:
    """Return the text of the index of several files."""
    total_bytes = sum(tensor.num_bytes for shard in shards for tensor in shard.tensors)
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    return json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=2) + "\n"


def partial_path(path: Path) -> Path:
    """Return where a file is written before it is complete."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, pieces: Iterable[Bytes]) -> None:
    """Write a file that appears whole or not at all; it replaces an existing one.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb", buffering=0) as file:
            for piece in pieces:
                _write_all(file.fileno(), memoryview(piece).cast("B"))
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_shard(directory: Path, shard: NewShard, pieces: Iterable[Bytes]) -> None:
    """Write one file; `pieces` are the bytes of its tensors, in their order.

    Raises:
        CheckpointError: `pieces` are not as many bytes as the tensors take.
        OSError: the file cannot be written; nothing of it is left.
    """

    def counted() -> Iterable[Bytes]:
        yield shard.header
        num_bytes = len(shard.header)
        for piece in pieces:
            num_bytes += memoryview(piece).nbytes
            yield piece
        if num_bytes != shard.num_bytes:
            raise CheckpointError(
                f"{shard.file} should take {shard.num_bytes} bytes, but {num_bytes} came from the source; "
                "was the source changed?"
            )

    write_whole(directory / shard.file, counted())


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _lay_out(path: Path, group: Sequence[NewTensor]) -> NewShard:
    ordered = sorted(group, key=lambda tensor: -dtype_bytes(tensor.dtype))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        entries[tensor.name] = {
            "dtype": _STORED_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(align_up(len(text), 8))
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    starts = {name: entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}  # type: ignore[index]
    stored = tuple(
        StoredTensor(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            path=str(path),
            offset=len(header) + starts[tensor.name],
            num_bytes=tensor.num_bytes,
        )
        for tensor in ordered
    )
    return NewShard(file=path.name, header=header, tensors=stored)
