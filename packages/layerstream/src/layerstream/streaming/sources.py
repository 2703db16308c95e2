"""Fill a buffer with a unit: the requests that read it, and the conversions that follow.

The recipe decides between three ways: bytes that are used as stored are read into place; a cast happens chunk
by chunk as the chunks arrive; a conversion reads its sources one after another and copies its results into
place. Weights that stay on an accelerator go there chunk by chunk too, so that they need no host memory but
the reader's own. Room: streaming.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from ..checkpoint.reader import DiskReader, ReadRequest
from ..checkpoint.tickets import ReadTicket
from ..spec.profiles import Conversion, Piece, StoredTensor, TensorRecipe, UnitRecipe
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
            self._request(buffer, tensor, piece) for tensor in self.unit.tensors for piece in tensor.pieces
        ]

    def device_requests(self, targets: Sequence[torch.Tensor]) -> list[ReadRequest]:
        """Return the reads that fill device buffers as `requests` fills a host buffer.

        Each chunk is copied to every one of `targets` as it arrives.
        """
        offsets = self.layout.device_offsets
        return [
            _delivered(piece.source, [_elements(target, offsets, tensor, piece) for target in targets])
            for tensor in self.unit.tensors
            for piece in tensor.pieces
        ]

    def _request(self, buffer: HostBuffer, tensor: TensorRecipe, piece: Piece) -> ReadRequest:
        offsets, source = self.layout.host_offsets, piece.source
        if source.dtype != tensor.dtype:
            return _delivered(source, [_elements(buffer.bytes, offsets, tensor, piece)])
        start = _start(offsets, tensor, piece)
        view = buffer.view[start : start + source.num_bytes]
        return _in_place(source, view, buffer.address + start)

    @property
    def needs_conversion(self) -> bool:
        """Whether `convert` has work to do once the reads are done."""
        return bool(self.unit.conversions)

    def convert(self, targets: Sequence[dict[str, torch.Tensor]], reader: DiskReader) -> None:
        """Convert the tensors that are not stored as they are used, and copy them into each of `targets`.

        The conversions are transformers' own.

        Args:
            targets: the unit's tensors, in each buffer.
            reader: reads what the conversions need.
        """
        for conversion in self.unit.conversions:
            converted = conversion.convert(_read_sources(conversion, reader))
            for views in targets:
                for name in views.keys() & set(conversion.targets):
                    views[name].copy_(converted[name])

    def host_views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors as they lie in a host buffer."""
        return self._views(buffer, self.layout.host_offsets)

    def device_views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unit's tensors as they lie in a device buffer."""
        return self._views(buffer, self.layout.device_offsets)

    def _views(self, buffer: torch.Tensor, offsets: dict[str, int]) -> dict[str, torch.Tensor]:
        return {tensor.name: typed_view(buffer, offsets[tensor.name], tensor) for tensor in self.unit.tensors}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What fills one buffer, or one on each device, with a unit.

    Attributes:
        source: the unit.
        requests: the reads.
        targets: the unit's tensors, in each buffer.
    """

    source: UnitSource
    requests: Sequence[ReadRequest]
    targets: Sequence[dict[str, torch.Tensor]]

    @classmethod
    def host(cls, source: UnitSource, buffer: HostBuffer) -> Fill:
        """Fill a host buffer."""
        return cls(source=source, requests=source.requests(buffer), targets=[source.host_views(buffer.bytes)])

    @classmethod
    def devices(cls, source: UnitSource, buffers: Sequence[torch.Tensor]) -> Fill:
        """Fill a buffer on each device."""
        targets = [source.device_views(buffer) for buffer in buffers]
        return cls(source=source, requests=source.device_requests(buffers), targets=targets)


def read_all(
    fills: Iterable[Fill], reader: DiskReader, on_filled: Callable[[Fill], None] = lambda _: None
) -> None:
    """Carry out `fills` in order; reads go on while the next one is made ready.

    Args:
        fills: what to read.
        reader: reads it.
        on_filled: called after each.

    Raises:
        ReadFailedError: the disk did not return the bytes it holds.
    """
    under_way: deque[tuple[Fill, ReadTicket]] = deque()

    def finish_first() -> None:
        fill, ticket = under_way.popleft()
        ticket.wait()
        fill.source.convert(fill.targets, reader)
        on_filled(fill)

    for fill in fills:
        under_way.append((fill, reader.submit(fill.requests)))
        while under_way and under_way[0][1].done:
            finish_first()
    while under_way:
        finish_first()


def _start(offsets: Mapping[str, int], tensor: TensorRecipe, piece: Piece) -> int:
    """Return the first byte of `piece` in a buffer in which tensors lie at `offsets`."""
    return offsets[tensor.name] + dtype_bytes(tensor.dtype, piece.start_element)


def _elements(
    buffer: torch.Tensor, offsets: Mapping[str, int], tensor: TensorRecipe, piece: Piece
) -> torch.Tensor:
    """Return the elements of `piece` in such a buffer, one after another, in the tensor's dtype."""
    start = _start(offsets, tensor, piece)
    num_bytes = dtype_bytes(tensor.dtype, prod(piece.source.shape))
    return buffer[start : start + num_bytes].view(getattr(torch, tensor.dtype))


def _in_place(source: StoredTensor, view: memoryview, address: int) -> ReadRequest:
    return ReadRequest(
        path=source.path,
        offset=source.offset,
        num_bytes=source.num_bytes,
        target=view,
        address=address,
        deliver=None,
    )


def _delivered(source: StoredTensor, runs: Sequence[torch.Tensor]) -> ReadRequest:
    """Return a read whose chunks are cast, as they arrive, into their place in each of `runs`."""
    stored: torch.dtype = getattr(torch, source.dtype)

    def deliver(chunk: memoryview, first_byte: int) -> None:
        values = torch.frombuffer(chunk, dtype=stored)
        start = first_byte // stored.itemsize
        for run in runs:
            run[start : start + values.numel()].copy_(values)

    return ReadRequest(path=source.path, offset=source.offset, num_bytes=source.num_bytes, deliver=deliver)


def _read_sources(conversion: Conversion, reader: DiskReader) -> dict[str, torch.Tensor]:
    tensors, requests = {}, []
    for source in conversion.sources:
        buffer = HostBuffer.over(torch.empty(source.num_bytes, dtype=torch.uint8))
        requests.append(_in_place(source, buffer.view, buffer.address))
        tensors[source.name] = buffer.bytes.view(getattr(torch, source.dtype)).reshape(source.shape)
    reader.submit(requests).wait()
    return tensors
