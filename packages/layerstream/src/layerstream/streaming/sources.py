"""Fill a buffer with a unit: the requests that read it, and the conversions that follow.

The recipe decides between three ways: bytes that are used as stored are read into place; a cast happens chunk
by chunk as the chunks arrive; a conversion reads its sources one after another and copies its results into
place. Room: streaming.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from ..checkpoint.reader import DiskReader, ReadRequest
from ..spec.profiles import Conversion, StoredTensor, TensorRecipe, UnitRecipe
from ..spec.sizes import dtype_bytes
from .buffers import HostBuffer, typed_view
from .layout import UnitLayout, lay_out


class UnitSource:
    """One unit's recipe and layout: all that it takes to fill a buffer with the unit.

    Attributes:
        unit: the recipe.
        layout: where the unit's tensors lie.
        read_bytes: bytes read to fill one buffer.
    """

    def __init__(self, unit: UnitRecipe, lay_out: Callable[[UnitRecipe], UnitLayout] = lay_out) -> None:
        """Compute the layout of `unit`."""
        self.unit = unit
        self.layout = lay_out(unit)
        self.read_bytes = sum(p.source.num_bytes for t in unit.tensors for p in t.pieces) + sum(
            source.num_bytes for c in unit.conversions for source in c.sources
        )

    def requests(self, buffer: HostBuffer) -> list[ReadRequest]:
        """Return the reads that fill `buffer`, except for the results of conversions."""
        return [
            self._request(buffer, tensor, piece.source, piece.start_element)
            for tensor in self.unit.tensors
            for piece in tensor.pieces
        ]

    def _request(
        self, buffer: HostBuffer, tensor: TensorRecipe, source: StoredTensor, start_element: int
    ) -> ReadRequest:
        start = self.layout.host_offsets[tensor.name] + dtype_bytes(tensor.dtype, start_element)
        if source.dtype == tensor.dtype:
            view = buffer.view[start : start + source.num_bytes]
            return _in_place(source, view, buffer.address + start)
        num_elements = prod(source.shape)
        run = buffer.bytes[start : start + dtype_bytes(tensor.dtype, num_elements)].view(
            getattr(torch, tensor.dtype)
        )
        return ReadRequest(
            path=source.path,
            offset=source.offset,
            num_bytes=source.num_bytes,
            target=None,
            address=0,
            deliver=_casting(run, getattr(torch, source.dtype)),
        )

    @property
    def needs_conversion(self) -> bool:
        """Whether `convert` has work to do once the reads are done."""
        return bool(self.unit.conversions)

    def convert(self, buffer: HostBuffer, reader: DiskReader) -> None:
        """Convert the tensors that are not stored as they are used, and copy them into `buffer`.

        The conversions are transformers' own.
        """
        by_name = {tensor.name: tensor for tensor in self.unit.tensors}
        for conversion in self.unit.conversions:
            converted = conversion.convert(_read_sources(conversion, reader))
            for name in conversion.targets:
                if name in by_name:
                    target = typed_view(buffer.bytes, self.layout.host_offsets[name], by_name[name])
                    target.copy_(converted[name])

    def host_views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors as they lie in a host buffer."""
        return self._views(buffer, self.layout.host_offsets)

    def device_views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors as they lie in a device buffer."""
        return self._views(buffer, self.layout.device_offsets)

    def _views(self, buffer: torch.Tensor, offsets: dict[str, int]) -> dict[str, torch.Tensor]:
        return {tensor.name: typed_view(buffer, offsets[tensor.name], tensor) for tensor in self.unit.tensors}


def _in_place(source: StoredTensor, view: memoryview, address: int) -> ReadRequest:
    return ReadRequest(
        path=source.path,
        offset=source.offset,
        num_bytes=source.num_bytes,
        target=view,
        address=address,
        deliver=None,
    )


def _casting(run: torch.Tensor, stored: torch.dtype) -> Callable[[memoryview, int], None]:
    """Return a function that casts each chunk, as it arrives, into its place in `run`."""

    def deliver(chunk: memoryview, first_byte: int) -> None:
        values = torch.frombuffer(chunk, dtype=stored)
        start = first_byte // stored.itemsize
        run[start : start + values.numel()].copy_(values)

    return deliver


def _read_sources(conversion: Conversion, reader: DiskReader) -> dict[str, torch.Tensor]:
    tensors, requests = {}, []
    for source in conversion.sources:
        buffer = HostBuffer.over(torch.empty(source.num_bytes, dtype=torch.uint8))
        requests.append(_in_place(source, buffer.view, buffer.address))
        tensors[source.name] = buffer.bytes.view(getattr(torch, source.dtype)).reshape(source.shape)
    reader.submit(requests).wait()
    return tensors
