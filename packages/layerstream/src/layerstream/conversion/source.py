"""What every source of weights offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

PIECE_BYTES = 16 * 1024**2
"""Values are read, converted and written in pieces of about this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """A tensor that a source can give.

    Attributes:
        name: its name in the new checkpoint.
        dtype: torch's name of the dtype in which the source gives its values.
        shape: its shape in the new checkpoint.
        is_quantized: the file stores it in another, smaller form, from which its values are computed.
        same_as: the name of an earlier tensor that has the same bytes of the file; None if there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_quantized: bool = False
    same_as: str | None = None


class Source(Protocol):
    """Weights in another format."""

    @property
    def tensors(self) -> tuple[SourceTensor, ...]:
        """The tensors, in the order in which they are best read."""

    def read(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the values of one tensor in row-major order, as flat pieces of its dtype.

        A piece is valid until the next one is asked for.
        """
