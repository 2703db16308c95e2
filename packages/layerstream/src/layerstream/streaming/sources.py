"""Where a unit's bytes come from: the requests that read it, and what is left to do when they are done.

Room: streaming. Three ways, by the recipe: bytes that are used as they are stored land in place; a cast is done chunk by chunk as
the chunks arrive; a conversion reads its sources one after another and puts its results in place.
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
    """One unit's recipe with its layout: all that is needed to fill a buffer with it.

    Attributes:
        unit: the recipe.
        layout: where its tensors lie.
        read_bytes: what one filling reads.
    """

    def __init__(self, unit: UnitRecipe) -> None:
        """Lay the unit out."""
        self.unit = unit
        self.layout: UnitLayout = lay_out(unit)
        self.read_bytes = sum(p.source.num_bytes for t in unit.tensors for p in t.pieces) + sum(
            source.num_bytes for c in unit.conversions for source in c.sources
        )

    def requests(self, buffer: HostBuffer) -> list[ReadRequest]:
        """Return the reads that fill `buffer`, all but what conversions make."""
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
        """Whether something is left to do once the reads are done."""
        return bool(self.unit.conversions)

    def convert(self, buffer: HostBuffer, reader: DiskReader) -> None:
        """Make the tensors that are more than placed bytes, through transformers' own conversion, and put them into `buffer`."""
        by_name = {tensor.name: tensor for tensor in self.unit.tensors}
        for conversion in self.unit.conversions:
            made = conversion.convert(_read_sources(conversion, reader))
            for name in conversion.targets:
                if name in by_name:
                    tensor = by_name[name]
                    typed_view(buffer.bytes, self.layout.host_offsets[name], tensor).copy_(made[name])

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
    """Return what casts each chunk as it arrives into its place in `run`."""

    def deliver(chunk: memoryview, first_byte: int) -> None:
        values = torch.frombuffer(chunk, dtype=stored)
        start = first_byte // stored.itemsize
        run[start : start + values.numel()].copy_(values)

    return deliver


def _read_sources(conversion: Conversion, reader: DiskReader) -> dict[str, torch.Tensor]:
    given, requests = {}, []
    for source in conversion.sources:
        buffer = HostBuffer.over(torch.empty(source.num_bytes, dtype=torch.uint8))
        requests.append(_in_place(source, buffer.view, buffer.address))
        given[source.name] = buffer.bytes.view(getattr(torch, source.dtype)).reshape(source.shape)
    reader.submit(requests).wait()
    return given
