"""Host memory that reads land in, as torch tensors.

It is allocated once and reused. For a CPU device it is the slot itself. Room: streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..checkpoint.buffers import AlignedBuffer
from ..spec.profiles import TensorRecipe
from ..spec.sizes import align_up, rounded_up
from .layout import PAGE


@dataclass(slots=True)
class HostBuffer:
    """A contiguous range of host memory that starts on a page.

    Attributes:
        bytes: a one-dimensional uint8 tensor over it.
        view: the same memory for positional reads.
        address: the address of its first byte.
    """

    bytes: torch.Tensor
    view: memoryview
    address: int

    @classmethod
    def allocate(cls, num_bytes: int) -> HostBuffer:
        """Return a buffer of `num_bytes` in huge pages."""
        aligned = AlignedBuffer(num_bytes)
        tensor = torch.frombuffer(aligned.buffer, dtype=torch.uint8, count=num_bytes)
        return cls(bytes=tensor, view=aligned.view(0, num_bytes), address=aligned.address)

    @classmethod
    def allocate_pinned(cls, num_bytes: int) -> HostBuffer:
        """Return a buffer of `num_bytes` that torch pins; it takes a whole power of two of bytes."""
        whole = torch.empty(rounded_up(num_bytes), dtype=torch.uint8, pin_memory=True)
        return cls.over(whole[:num_bytes])

    def part(self, start: int, num_bytes: int) -> HostBuffer:
        """Return a part of this buffer as another buffer; nothing is copied."""
        end = start + num_bytes
        return HostBuffer(
            bytes=self.bytes[start:end], view=self.view[start:end], address=self.address + start
        )

    @classmethod
    def over(cls, tensor: torch.Tensor) -> HostBuffer:
        """Return a buffer over an existing uint8 CPU tensor."""
        return cls(bytes=tensor, view=memoryview(tensor.numpy()), address=tensor.data_ptr())


def allocate_many(sizes: Sequence[int]) -> list[HostBuffer]:
    """Return a buffer of each size, each starting on a page.

    All of them are one allocation, so that rounding up to huge pages happens once.
    """
    starts = [0, *accumulate(align_up(size, PAGE) for size in sizes)]
    if not starts[-1]:
        return []
    whole = HostBuffer.allocate(starts[-1])
    return [whole.part(start, size) for start, size in zip(starts, sizes, strict=False)]


def typed_view(buffer: torch.Tensor, offset: int, tensor: TensorRecipe) -> torch.Tensor:
    """Return `tensor` as a view `offset` bytes into the uint8 tensor `buffer`; nothing is copied."""
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    return buffer[offset : offset + tensor.num_bytes].view(dtype).reshape(tensor.shape)
