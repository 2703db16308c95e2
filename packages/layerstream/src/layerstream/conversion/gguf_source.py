"""Read GGUF files: plain numbers as they are, quantized ones as the values that they stand for.

Every tensor is read in groups of rows. A quantized block never spans two rows, so each group can be computed
on its own. Needs the package gguf.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from ..checkpoint.gguf_header import FLOATS, GgufTensor, read_gguf_header
from ..checkpoint.index import some
from ..errors import CheckpointError, ShardCorruptError, UnsupportedFormatError
from .gguf_rules import ARCHITECTURES, Rule, architecture_of, is_computed, rule_for
from .source import PIECE_BYTES, SourceTensor

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Where the values of one new tensor are in a file.

    Attributes:
        stored: the file's tensor that they are in.
        rule: how they change.
        offset: their first byte in the file.
        shape: of the new tensor.
        num_rows: rows that are read apart from each other.
        row_bytes: bytes of such a row.
        group_rows: rows that must be read together.
    """

    stored: GgufTensor
    rule: Rule
    offset: int
    shape: tuple[int, ...]
    num_rows: int
    row_bytes: int
    group_rows: int


class GgufSource:
    """The tensors of one GGUF model, in one file or in several parts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read what the files hold; no weight is read.

        Raises:
            UnsupportedFormatError: the architecture, a tensor or a tensor's type is unknown.
            ShardCorruptError: a file is damaged; with `path`.
            CheckpointError: a file cannot be read, or two hold a tensor of the same name.
        """
        headers = [read_gguf_header(path) for path in paths]
        self.metadata = headers[0].metadata
        architecture = architecture_of(self.metadata, paths[0])
        stored = [tensor for header in headers for tensor in header.tensors]
        self.computed = tuple(tensor.name for tensor in stored if is_computed(tensor.name))
        self._rows: dict[str, _Rows] = {}
        unknown = []
        for tensor in stored:
            rule = rule_for(tensor.name, architecture, self.metadata)
            if rule is not None:
                self._add(tensor, rule)
            elif tensor.name not in self.computed:
                unknown.append(tensor.name)
        if unknown:
            raise UnsupportedFormatError(
                f"{paths[0]} holds {len(unknown)} tensors that a {self.metadata['general.architecture']} "
                f"model does not have: {some(unknown)}; these models can be converted: "
                f"{', '.join(ARCHITECTURES)}. Use the original checkpoint of the model instead"
            )

    @property
    def tensors(self) -> tuple[SourceTensor, ...]:
        """The tensors, in the order of the files."""
        return tuple(
            SourceTensor(
                name=name,
                dtype=_dtype_of(rows.stored.kind, is_raised=rows.rule.is_raised),
                shape=rows.shape,
                is_quantized=rows.stored.kind not in FLOATS,
            )
            for name, rows in self._rows.items()
        )

    @property
    def quantized_kinds(self) -> tuple[str, ...]:
        """The names of the quantized types in the files, such as `"Q4_K"`."""
        kinds = {rows.stored.kind for rows in self._rows.values()}
        return tuple(sorted(kinds - FLOATS.keys()))

    def read(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the values of one tensor in row-major order, as flat pieces.

        Raises:
            ShardCorruptError: the file is shorter than it was.
            OSError: it cannot be read.
        """
        rows = self._rows[name]
        group_bytes = 4 * rows.group_rows * max(1, math.prod(rows.shape) // max(1, rows.num_rows))
        piece_rows = rows.group_rows * max(1, PIECE_BYTES // group_bytes)
        with rows.stored.path.open("rb") as file:
            file.seek(rows.offset)
            for start in range(0, rows.num_rows, piece_rows):
                num_rows = min(piece_rows, rows.num_rows - start)
                data = bytearray(file.read(num_rows * rows.row_bytes))
                if len(data) < num_rows * rows.row_bytes:
                    path = rows.stored.path
                    raise ShardCorruptError(f"{path} became shorter while it was read", path=str(path))
                yield _values(np.frombuffer(data, np.uint8).reshape(num_rows, rows.row_bytes), rows)

    def _add(self, tensor: GgufTensor, rule: Rule) -> None:
        if "{expert}" not in rule.name:
            self._add_rows(rule.name, tensor, rule, tensor.offset, tensor.shape)
            return
        if len(tensor.shape) != 3:
            raise _bad_shape(tensor, "experts are stacked in three dimensions")
        expert_bytes = tensor.num_bytes // max(1, tensor.shape[0])
        for expert in range(tensor.shape[0]):
            offset = tensor.offset + expert * expert_bytes
            self._add_rows(rule.name.format(expert=expert), tensor, rule, offset, tensor.shape[1:])

    def _add_rows(
        self, name: str, tensor: GgufTensor, rule: Rule, offset: int, shape: tuple[int, ...]
    ) -> None:
        if name in self._rows:
            raise CheckpointError(f"tensor {tensor.name!r} is in two of the files; remove one of them")
        num_rows, row_bytes, group_rows = math.prod(shape[:-1]), tensor.row_bytes, 1
        if rule.num_heads:
            if len(shape) == 1 and tensor.kind in FLOATS:
                # a bias: its values are reordered as the rows of its weight are
                num_rows, row_bytes = shape[0], tensor.row_bytes // max(1, shape[0])
            if num_rows % (2 * rule.num_heads):
                raise _bad_shape(tensor, f"its rows cannot be shared by {rule.num_heads} heads")
            group_rows = num_rows // rule.num_heads
        if rule.adds_dimension and len(shape) == 1:
            shape = (1, *shape)
        self._rows[name] = _Rows(
            stored=tensor,
            rule=rule,
            offset=offset,
            shape=shape,
            num_rows=num_rows,
            row_bytes=row_bytes,
            group_rows=max(1, group_rows),
        )


def _values(data: _Bytes, rows: _Rows) -> torch.Tensor:
    """Return the values of whole groups of rows, flat."""
    kind = rows.stored.kind
    if rows.rule.num_heads:
        data = restore_head_rows(data, rows.group_rows)
    if kind in FLOATS:
        values = torch.from_numpy(data.reshape(-1)).view(getattr(torch, FLOATS[kind]))
    else:
        computed = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
        values = torch.from_numpy(np.ascontiguousarray(computed, dtype=np.float32).reshape(-1))
    return values.to(torch.float32) - 1 if rows.rule.is_raised else values


def restore_head_rows(rows: npt.NDArray[Any], head_rows: int) -> npt.NDArray[Any]:
    """Return rows in transformers' order; llama.cpp alternates the two halves of every head."""
    apart = rows.reshape(-1, head_rows // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(rows.shape)


def _dtype_of(kind: str, *, is_raised: bool) -> str:
    # what is computed is computed in float32
    return "float32" if is_raised else FLOATS.get(kind, "float32")


def _bad_shape(tensor: GgufTensor, finding: str) -> ShardCorruptError:
    return ShardCorruptError(
        f"tensor {tensor.name!r} in {tensor.path} has shape {list(tensor.shape)}, but {finding}; "
        "download or copy the file again",
        path=str(tensor.path),
    )
