"""Compute where each tensor of a unit lies in a buffer. Pure arithmetic.

A unit has two layouts: one in host memory, where reads land, and one on a device, where kernels read it.

Alignment changes bits: fp32 products of one row depend on whether an address is 16-byte aligned. A tensor
that is stored as it is used therefore lies at an address congruent to its file offset, as in a memory-mapped
load (O_DIRECT needs this too); every tensor that is cast, stacked or converted starts on a 64-byte boundary,
as in a fresh allocation. Room: streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..spec.profiles import TensorRecipe, UnitRecipe
from ..spec.sizes import align_up, dtype_bytes

PAGE = 4096
"""Buffers start on a page. Addresses and file offsets are congruent modulo this many bytes, which covers the
O_DIRECT alignment of every disk."""

_HOST_ALIGNMENT = 64
_DEVICE_ALIGNMENT = 512
"""The alignment that torch's caching allocators give every tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRun:
    """One contiguous copy from a unit's host layout to its device layout, in bytes."""

    host_offset: int
    device_offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLayout:
    """Where the tensors of one unit lie.

    Attributes:
        host_offsets: offsets in the host buffer, by tensor name.
        host_bytes: the size of the host buffer that the unit needs.
        device_offsets: offsets in the device buffer, by tensor name.
        device_bytes: the size of the device buffer that the unit needs.
        copies: the copies from the host layout to the device layout.
    """

    host_offsets: dict[str, int]
    host_bytes: int
    device_offsets: dict[str, int]
    device_bytes: int
    copies: tuple[CopyRun, ...]

    @property
    def copied_bytes(self) -> int:
        """The bytes of all copies."""
        return sum(run.num_bytes for run in self.copies)


def stored_as_used(tensor: TensorRecipe) -> bool:
    """Return whether the bytes on disk are the tensor as the model uses it, aligned to the element size."""
    if len(tensor.pieces) != 1:
        return False
    source = tensor.pieces[0].source
    return source.dtype == tensor.dtype and source.offset % dtype_bytes(tensor.dtype) == 0


def lay_out(unit: UnitRecipe) -> UnitLayout:
    """Return the layout of `unit` in host and in device memory.

    Tensors that lie side by side in a file lie side by side in the host buffer, so that one read fetches all
    of them. They lie side by side on the device too, so that one copy moves all of them, if each of them then
    starts on a 512-byte boundary.
    """
    runs = _file_runs([tensor for tensor in unit.tensors if stored_as_used(tensor)])
    converted = [tensor for tensor in unit.tensors if not stored_as_used(tensor)]
    host: dict[str, int] = {}
    device: dict[str, int] = {}
    copies: list[CopyRun] = []
    host_end = device_end = 0
    for run in runs:
        first, last = run[0].pieces[0].source, run[-1].pieces[0].source
        host_start = align_up(host_end, PAGE) + first.offset % PAGE if host_end else first.offset % PAGE
        relative = {tensor.name: tensor.pieces[0].source.offset - first.offset for tensor in run}
        host |= {name: host_start + offset for name, offset in relative.items()}
        run_bytes = last.offset + last.num_bytes - first.offset
        host_end = host_start + run_bytes
        device_end = _place_on_device(run, relative, host_start, run_bytes, device_end, device, copies)
    for tensor in converted:
        host[tensor.name] = align_up(host_end, _HOST_ALIGNMENT)
        host_end = host[tensor.name] + tensor.num_bytes
        device[tensor.name] = align_up(device_end, _DEVICE_ALIGNMENT)
        device_end = device[tensor.name] + tensor.num_bytes
        copies.append(
            CopyRun(
                host_offset=host[tensor.name], device_offset=device[tensor.name], num_bytes=tensor.num_bytes
            )
        )
    return UnitLayout(
        host_offsets=host,
        host_bytes=align_up(host_end, PAGE),
        device_offsets=device,
        device_bytes=align_up(device_end, _DEVICE_ALIGNMENT),
        copies=tuple(copies),
    )


def lay_out_in_host(unit: UnitRecipe) -> UnitLayout:
    """Return the layout of a unit that stays in host memory and is copied from there in every sweep.

    Its bytes are read only once. So where `lay_out` needs several copies, they lie as on the device instead,
    and one copy moves all of them.
    """
    layout = lay_out(unit)
    if len(layout.copies) <= 1:
        return layout
    return UnitLayout(
        host_offsets=layout.device_offsets,
        host_bytes=align_up(layout.device_bytes, PAGE),
        device_offsets=layout.device_offsets,
        device_bytes=layout.device_bytes,
        copies=(CopyRun(host_offset=0, device_offset=0, num_bytes=layout.device_bytes),),
    )


def _file_runs(tensors: Sequence[TensorRecipe]) -> list[list[TensorRecipe]]:
    """Group tensors whose bytes follow one another in one file."""
    runs: list[list[TensorRecipe]] = []
    file_end: tuple[str, int] | None = None
    for tensor in sorted(
        tensors, key=lambda t: (t.pieces[0].source.path, t.pieces[0].source.offset, t.num_bytes)
    ):
        source = tensor.pieces[0].source
        if file_end == (source.path, source.offset):
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
        file_end = (source.path, source.offset + source.num_bytes)
    return runs


def _place_on_device(
    run: Sequence[TensorRecipe],
    relative: dict[str, int],
    host_start: int,
    run_bytes: int,
    device_end: int,
    device: dict[str, int],
    copies: list[CopyRun],
) -> int:
    """Place one file run on the device, in one piece if alignment allows; return the buffer's new end."""
    if all(offset % _DEVICE_ALIGNMENT == 0 for offset in relative.values()):
        start = align_up(device_end, _DEVICE_ALIGNMENT)
        device |= {name: start + offset for name, offset in relative.items()}
        copies.append(CopyRun(host_offset=host_start, device_offset=start, num_bytes=run_bytes))
        return start + run_bytes
    for tensor in run:
        start = align_up(device_end, _DEVICE_ALIGNMENT)
        device[tensor.name] = start
        copies.append(
            CopyRun(
                host_offset=host_start + relative[tensor.name],
                device_offset=start,
                num_bytes=tensor.num_bytes,
            )
        )
        device_end = start + tensor.num_bytes
    return device_end


def slot_bytes(unit: UnitRecipe, *, on_host: bool) -> int:
    """Return the size of a slot that can hold `unit`, by the host layout if the slot is host memory."""
    layout = lay_out(unit)
    return layout.host_bytes if on_host else layout.device_bytes


def host_bytes(unit: UnitRecipe) -> int:
    """Return the host memory that `unit` takes, whether it stays there or only passes through."""
    return max(lay_out(unit).host_bytes, lay_out_in_host(unit).host_bytes)
