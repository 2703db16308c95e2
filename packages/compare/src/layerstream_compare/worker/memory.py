"""Memory of this process and of a model, in bytes: what the kernel counts, and what the model's own storages hold.

Worker's side. It knows Linux's /proc, torch's allocators and how the quantization libraries keep their state; it does not know
variants. Where /proc is missing the readings raise `OSError`: there are no honest figures then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..measurement import PhaseMemory
from .nvml import process_bytes

_STATUS = Path("/proc/self/status")
_ROLLUP = Path("/proc/self/smaps_rollup")
_CLEAR = Path("/proc/self/clear_refs")
_IO = Path("/proc/self/io")
_MAPS = Path("/proc/self/maps")
_RESET_PEAK = "5"
"""As proc(5) has it: reset the peak resident set size to the current value."""

_QUANTIZATION_STATE = ("quant_state", "state", "state2", "absmax", "code", "offset", "CB", "SCB", "CxB")
"""Where bitsandbytes keeps what is not a parameter or a buffer: on weights, on modules, on the states themselves."""


_Span = tuple[int, int]
"""Addresses: the first byte, and the first after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The resident memory of this process at one moment.

    Attributes:
        anonymous_bytes: private memory, copied-on-write file pages included.
        file_bytes: mapped files and shared memory.
        peak_bytes: high-water mark of the resident set since the last reset.
    """

    anonymous_bytes: int
    file_bytes: int
    peak_bytes: int

    @property
    def resident_bytes(self) -> int:
        """All of it."""
        return self.anonymous_bytes + self.file_bytes


def read_memory() -> Reading:
    """Return this process' resident memory now.

    The split is from smaps_rollup, which walks the page tables and is exact; RssAnon and RssFile of /proc/self/status, which lag
    behind by some pages a thread, stand in where it cannot be read.
    """
    status = _fields(_STATUS)
    try:
        rollup = _fields(_ROLLUP)
        anonymous, file = rollup["Anonymous"], rollup["Rss"] - rollup["Anonymous"]
    except OSError:
        anonymous, file = status["RssAnon"], status["RssFile"] + status["RssShmem"]
    return Reading(
        anonymous_bytes=anonymous, file_bytes=file, peak_bytes=max(status["VmHWM"], anonymous + file)
    )


def reset_peak() -> bool:
    """Let the high-water mark start again from the resident set of now; return False where the kernel does not allow it."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def read_disk_bytes() -> int:
    """Return the bytes that this process has truly had read from disks; 0 where the kernel does not tell."""
    try:
        lines = _IO.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes:")))


def _fields(path: Path) -> dict[str, int]:
    fields = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0]) * 1024
    return fields


class PhaseMeter:
    """Measure memory phase by phase; the peak counters start anew with each.

    Attributes:
        phases: those that have ended.
        peak_is_reset: whether the kernel let the peak be reset; without it a phase's peak is the highest so far.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure this process, and the allocator of `device` where that is an accelerator.

        The accelerator is started here, before the first phase: its counters cannot be reset before that, and what its driver
        takes of the host's memory is none of the model's.
        """
        self.phases: list[PhaseMemory] = []
        self.peak_is_reset = True
        self._device = device
        self._name = ""
        torch.empty(0, device=device)

    def start(self, name: str) -> None:
        """Begin the phase `name`."""
        self._name = name
        self.peak_is_reset &= reset_peak()
        if self._device.type != "cpu":
            torch.get_device_module(self._device).reset_peak_memory_stats(self._device)

    def stop(self) -> PhaseMemory:
        """End the phase and return its memory; it is also added to `phases`."""
        allocated = reserved = 0
        if self._device.type != "cpu":
            module = torch.get_device_module(self._device)
            allocated = int(module.max_memory_allocated(self._device))
            reserved = int(module.max_memory_reserved(self._device))
        reading = read_memory()
        ended = PhaseMemory(
            phase=self._name,
            anonymous_bytes=reading.anonymous_bytes,
            file_bytes=reading.file_bytes,
            peak_bytes=reading.peak_bytes,
            device_allocated_bytes=allocated,
            device_reserved_bytes=reserved,
            device_process_bytes=process_bytes(self._device),
        )
        self.phases.append(ended)
        return ended


def held_bytes(model: torch.nn.Module, *, on_accelerator_only: bool = False) -> int:
    """Return the bytes that the model's own storages hold, wherever they are or on accelerators alone.

    Counted: parameters, buffers, the tensors inside tensor subclasses, bitsandbytes' quantization state; each byte once, however
    many tensors share it; the whole storage even where a tensor shows only a part of it, since that is what stays allocated; files
    mapped into memory as well as memory of one's own. Not counted: tensors on meta, and a streamed model's slots, which no module
    refers to (a `Loaded` tells them apart).
    """
    spans = _held_spans(model)
    return sum(
        _covered(found) for device, found in spans.items() if device != "cpu" or not on_accelerator_only
    )


def mapped_held_bytes(model: torch.nn.Module) -> int:
    """Return what of `held_bytes` lies in mapped files: a checkpoint that is used where it is mapped; 0 where none can be seen."""
    in_host_memory = _held_spans(model).get("cpu", [])
    files = _mapped_files()
    both = [(max(start, begin), min(end, stop)) for start, end in in_host_memory for begin, stop in files]
    return _covered((start, end) for start, end in both if start < end)


def _mapped_files() -> list[_Span]:
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    # address range, rights, offset, device, inode and, of a file, its path
    named = (line.split(maxsplit=5) for line in lines)
    ranges = (parts[0].split("-") for parts in named if len(parts) == 6 and parts[5].startswith("/"))
    return [(int(begin, 16), int(end, 16)) for begin, end in ranges]


def _held_spans(model: torch.nn.Module) -> dict[str, list[_Span]]:
    """Return the address ranges of the model's storages, by device."""
    spans: dict[str, list[_Span]] = {}
    for tensor in _model_tensors(model):
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        spans.setdefault(str(tensor.device), []).append((start, start + storage.nbytes()))
    return spans


def _covered(spans: Iterable[_Span]) -> int:
    total = end_of_last = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, end_of_last))
        end_of_last = max(end, end_of_last)
    return total


def _model_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for module in model.modules():
        for owner in (*module.parameters(recurse=False), *module.buffers(recurse=False), *_states(module)):
            yield from _plain_tensors(owner, seen)


def _states(owner: Any) -> Iterator[Any]:
    # instance attributes only: bitsandbytes' properties of the same names would copy
    held = getattr(owner, "__dict__", {})
    return (held[name] for name in _QUANTIZATION_STATE if held.get(name) is not None)


def _plain_tensors(owner: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield the tensors with storages of their own inside `owner`, a tensor, a tensor subclass or a quantization state."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, torch.Tensor):
        if hasattr(owner, "__tensor_flatten__"):
            names, _ = owner.__tensor_flatten__()
            for name in names:
                yield from _plain_tensors(getattr(owner, name), seen)
        elif not owner.is_meta:
            yield owner
    for state in _states(owner):
        yield from _plain_tensors(state, seen)
