"""Host memory that reads land in, as torch sees it.

Room: streaming. Allocated once, reused for ever. On a CPU device it is a slot; for an accelerator it is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..checkpoint.buffers import AlignedBuffer
from ..facts import TensorRecipe
from .layout import PAGE


@dataclass(slots=True)
class HostBuffer:
    """A page-aligned run of host bytes.

    Attributes:
        bytes: a one-dimensional uint8 tensor over it.
        view: the same memory for positional reads.
        address: its first byte's address.
    """

    bytes: torch.Tensor
    view: memoryview
    address: int

    @classmethod
    def allocate(cls, num_bytes: int, *, pinned: bool = False) -> HostBuffer:
        """Return a buffer of `num_bytes`, pinned for an accelerator or from the reader's own huge pages."""
        if pinned:
            # The allocator of pinned memory promises no page alignment; take one page more and start on a boundary.
            whole = torch.empty(num_bytes + PAGE, dtype=torch.uint8, pin_memory=True)
            start = -whole.data_ptr() % PAGE
            tensor = whole[start : start + num_bytes]
            return cls(bytes=tensor, view=memoryview(tensor.numpy()), address=tensor.data_ptr())
        own = AlignedBuffer(num_bytes)
        tensor = torch.frombuffer(own.buffer, dtype=torch.uint8, count=num_bytes)
        return cls(bytes=tensor, view=own.view(0, num_bytes), address=own.address)

    @classmethod
    def over(cls, tensor: torch.Tensor) -> HostBuffer:
        """Return a buffer over an existing uint8 CPU tensor."""
        return cls(bytes=tensor, view=memoryview(tensor.numpy()), address=tensor.data_ptr())


def typed_view(buffer: torch.Tensor, offset: int, tensor: TensorRecipe) -> torch.Tensor:
    """Return `tensor` as it lies `offset` bytes into the uint8 tensor `buffer`; nothing is copied."""
    kind: torch.dtype = getattr(torch, tensor.dtype)
    return buffer[offset : offset + tensor.num_bytes].view(kind).reshape(tensor.shape)
