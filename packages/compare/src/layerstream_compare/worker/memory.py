"""Measure memory in bytes: this process's, as the kernel counts it, and a model's, from its storages.

Runs in the worker. It does not know variants, but it knows where quantization libraries keep their state.
Without /proc the readings raise `OSError`, since there is no reliable substitute.
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
"""Resets the peak resident set size to the current value, see proc(5)."""

_QUANTIZATION_STATE = ("quant_state", "state", "state2", "absmax", "code", "offset", "CB", "SCB", "CxB")
"""Attributes in which bitsandbytes keeps tensors that are neither parameters nor buffers.

They are found on weights, on modules and on the states themselves."""

_AddressRange = tuple[int, int]
"""Address of the first byte, and of the first byte after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Resident memory of this process at one moment.

    Attributes:
        anonymous_bytes: private memory, copied-on-write file pages included.
        file_bytes: mapped files.
        shared_bytes: shared memory, where a driver keeps the pinned memory that it allocates.
        peak_bytes: high-water mark of the resident set since the last reset.
    """

    anonymous_bytes: int
    file_bytes: int
    shared_bytes: int
    peak_bytes: int

    @property
    def resident_bytes(self) -> int:
        """The whole resident set."""
        return self.anonymous_bytes + self.file_bytes + self.shared_bytes


def read_memory() -> Reading:
    """Return this process's resident memory.

    The split comes from smaps_rollup, which walks the page tables and is exact. If it cannot be read, RssAnon
    and RssFile of /proc/self/status are used, which lag behind by some pages per thread. RssShmem is always
    taken from there: smaps_rollup does not tell shared memory from files.
    """
    status = _fields(_STATUS)
    shared = status["RssShmem"]
    try:
        rollup = _fields(_ROLLUP)
        anonymous = rollup["Anonymous"]
        file = max(0, rollup["Rss"] - anonymous - shared)
    except OSError:
        anonymous, file = status["RssAnon"], status["RssFile"]
    return Reading(
        anonymous_bytes=anonymous,
        file_bytes=file,
        shared_bytes=shared,
        peak_bytes=max(status["VmHWM"], anonymous + file + shared),
    )


def reset_peak() -> bool:
    """Reset the high-water mark to the current resident set; return False if the kernel does not allow it."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def read_disk_bytes() -> int:
    """Return the bytes read from disk for this process, page cache excluded; 0 if the kernel does not say."""
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
    """Measures memory phase by phase, with peak counters reset at the start of each.

    Attributes:
        phases: the phases that have ended.
        peak_is_reset: whether the kernel allowed every reset; if not, a phase's peak is the highest so far.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure this process and, if `device` is an accelerator, its allocator.

        This initializes the accelerator before the first phase: its counters cannot be reset earlier, and the
        host memory that its driver takes does not belong to the model.
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
        """End the phase and return its memory, which is also appended to `phases`."""
        allocated = reserved = 0
        if self._device.type != "cpu":
            module = torch.get_device_module(self._device)
            allocated = int(module.max_memory_allocated(self._device))
            reserved = int(module.max_memory_reserved(self._device))
        reading = read_memory()
        phase = PhaseMemory(
            phase=self._name,
            anonymous_bytes=reading.anonymous_bytes,
            file_bytes=reading.file_bytes,
            shared_bytes=reading.shared_bytes,
            peak_bytes=reading.peak_bytes,
            device_allocated_bytes=allocated,
            device_reserved_bytes=reserved,
            device_process_bytes=process_bytes(self._device),
        )
        self.phases.append(phase)
        return phase


def held_bytes(model: torch.nn.Module, *, on_accelerator_only: bool = False) -> int:
    """Return the bytes that the model's storages hold, on all devices or on accelerators only.

    Counted: parameters, buffers, tensors inside tensor subclasses and bitsandbytes' quantization state, in
    private memory or in mapped files. Each byte counts once, however many tensors share it. A storage counts
    whole even if a tensor covers only a part of it, since all of it stays allocated. Not counted: tensors on
    meta, and a streamed model's slots, which no module refers to (see `Loaded.extra_held_bytes`).
    """
    ranges_of = _storage_ranges(model)
    return sum(
        _covered(ranges) for device, ranges in ranges_of.items() if device != "cpu" or not on_accelerator_only
    )


def mapped_held_bytes(model: torch.nn.Module) -> int:
    """Return the part of `held_bytes` in mapped files (a checkpoint used in place); 0 if unknown."""
    in_host_memory = _storage_ranges(model).get("cpu", [])
    files = _mapped_files()
    overlaps = [(max(start, begin), min(end, stop)) for start, end in in_host_memory for begin, stop in files]
    return _covered((start, end) for start, end in overlaps if start < end)


def _mapped_files() -> list[_AddressRange]:
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    # fields: address range, permissions, offset, device, inode and, for a file, its path
    fields = (line.split(maxsplit=5) for line in lines)
    ranges = (parts[0].split("-") for parts in fields if len(parts) == 6 and parts[5].startswith("/"))
    return [(int(begin, 16), int(end, 16)) for begin, end in ranges]


def _storage_ranges(model: torch.nn.Module) -> dict[str, list[_AddressRange]]:
    """Return the address ranges of the model's storages, by device."""
    ranges: dict[str, list[_AddressRange]] = {}
    for tensor in _model_tensors(model):
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        ranges.setdefault(str(tensor.device), []).append((start, start + storage.nbytes()))
    return ranges


def _covered(ranges: Iterable[_AddressRange]) -> int:
    total = covered_to = 0
    for start, end in sorted(ranges):
        total += max(0, end - max(start, covered_to))
        covered_to = max(end, covered_to)
    return total


def _model_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for module in model.modules():
        for owner in (*module.parameters(recurse=False), *module.buffers(recurse=False), *_states(module)):
            yield from _plain_tensors(owner, seen)


def _states(owner: Any) -> Iterator[Any]:
    # instance attributes only: bitsandbytes has properties of the same names, which copy
    attributes = getattr(owner, "__dict__", {})
    return (attributes[name] for name in _QUANTIZATION_STATE if attributes.get(name) is not None)


def _plain_tensors(owner: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield the plain tensors inside `owner`: a tensor, a tensor subclass or a quantization state."""
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
