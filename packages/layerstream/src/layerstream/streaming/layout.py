"""Where each tensor of a unit lies in a buffer. Pure arithmetic.

Room: streaming. Two layouts of one unit: in host memory, where reads land, and on a device, where kernels look.

Alignment decides bits: fp32 one-row products change with an address that is not 16-byte aligned. A tensor that is stored as it is
used is placed at an address congruent to its file offset, as a memory-mapped load has it (and O_DIRECT wants it so); everything
that is cast, stacked or converted starts on a 64-byte boundary, as a fresh allocation would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..spec.profiles import TensorRecipe, UnitRecipe
from ..spec.sizes import align_up, dtype_bytes

PAGE = 4096
"""Buffers start on a page; congruence to file offsets is kept modulo this, which covers every disk's O_DIRECT alignment."""

_HOST_ALIGNMENT = 64
_DEVICE_ALIGNMENT = 512
"""What torch's caching allocators give each tensor of its own."""


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
        host_offsets: by tensor name, in the host buffer.
        host_bytes: the size of the host buffer it needs.
        device_offsets: by tensor name, in the device buffer.
        device_bytes: the size of the device buffer it needs.
        copies: the copies that take the one to the other.
    """

    host_offsets: dict[str, int]
    host_bytes: int
    device_offsets: dict[str, int]
    device_bytes: int
    copies: tuple[CopyRun, ...]


def stored_as_used(tensor: TensorRecipe) -> bool:
    """Return whether the bytes on disk are the tensor as the model uses it, aligned to its elements."""
    if len(tensor.pieces) != 1:
        return False
    source = tensor.pieces[0].source
    return source.dtype == tensor.dtype and source.offset % dtype_bytes(tensor.dtype) == 0


def lay_out(unit: UnitRecipe) -> UnitLayout:
    """Return the layout of `unit` in host and in device memory.

    Tensors that lie side by side in a file lie side by side in the host buffer, so that one read takes them all, and on the device
    wherever every one of them then starts on a 512-byte boundary, so that one copy takes them all.
    """
    runs = _file_runs([tensor for tensor in unit.tensors if stored_as_used(tensor)])
    made = [tensor for tensor in unit.tensors if not stored_as_used(tensor)]
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
    for tensor in made:
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


def _file_runs(tensors: Sequence[TensorRecipe]) -> list[list[TensorRecipe]]:
    """Group tensors whose bytes follow one another in one file."""
    runs: list[list[TensorRecipe]] = []
    for tensor in sorted(
        tensors, key=lambda t: (t.pieces[0].source.path, t.pieces[0].source.offset, t.num_bytes)
    ):
        source = tensor.pieces[0].source
        previous = runs[-1][-1].pieces[0].source if runs else None
        if (
            previous
            and previous.path == source.path
            and previous.offset + previous.num_bytes == source.offset
        ):
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
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
    """Place one file run on the device, whole where alignment allows it; return where the device buffer ends now."""
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
    """Return the size of a slot that can hold `unit`: the host layout's where the slot is host memory, else the device layout's."""
    layout = lay_out(unit)
    return layout.host_bytes if on_host else layout.device_bytes
