"""Measure this machine: free memory, disk, copies, memory bandwidth and arithmetic.

It knows hardware, not models. Free memory is queried each time. `probe_machine` measures the rates and keeps
them in the user's cache, so that planning takes no time; until then they are assumed, and `Machine.measured`
is False.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch

from .checkpoint.buffers import AlignedBuffer
from .checkpoint.reader import DiskReader, ReadRequest
from .checkpoint.user_cache import cache_directory
from .errors import PlanError
from .spec.profiles import HostPinning, Machine
from .spec.sizes import MIB

_MOVING_RATES = ("disk_bytes_per_s", "copy_bytes_per_s", "pageable_bytes_per_s")
_COMPUTING_RATES = ("memory_bytes_per_s", "flops_per_s")
_ACCELERATOR_RUNTIME_BYTES = 640 * MIB
"""Allowance, not measured, for a CUDA context, its libraries' workspaces and the allocator's rounding."""

_HOST_RUNTIME_BYTES = 40 * MIB
"""How much a process on the CPU grows in addition to weights and activations.

Pages of library code that the first forward touches (17 to 22 MiB), the model's Python objects and what the
first forward keeps (8 MiB), and on a machine's first run, Python compiling its imports (a few MiB). It is the
same for small and large models; see docs/lab-notes.md.
"""

_WHOLE_FOLIO_BYTES = 28 * MIB
"""How much more library code is mapped where the kernel maps it by the MiB instead of 64 KiB at a time."""

_TILE_KERNEL_BYTES = 4 * MIB
"""What the kernels compiled for AMX's tiles take for a prompt and its new tokens."""

_CODE_LIBRARY = "libtorch_cpu"
_CHUNK_BYTES = 256 * 1024
_PAGEMAP_ENTRY_BYTES = 8

_MALLOC_THRESHOLD_BYTES = 128 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_PROBE_BYTES = 256 * MIB


def resolve_device(requested: str) -> torch.device:
    """Return the requested torch device; `"auto"` is the accelerator if there is one, else the CPU.

    Raises:
        PlanError: this machine has no such device.
    """
    if requested == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found if found is not None else torch.device("cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise PlanError(
            f"{requested!r} is not a torch device: use 'auto', 'cpu', 'cuda', 'cuda:1', 'xpu', 'mps', ..."
        ) from error
    if device.type != "cpu" and not torch.get_device_module(device).is_available():
        raise PlanError(
            f"device {requested!r} was requested, but this torch finds no {device.type} device here; use "
            "device='cpu'"
        )
    if (
        device.index is not None
        and device.type != "cpu"
        and device.index >= torch.get_device_module(device).device_count()
    ):
        count = torch.get_device_module(device).device_count()
        raise PlanError(
            f"device {requested!r} was requested, but there are {count} of that kind here, counted from 0"
        )
    return device


def describe_machine(device: torch.device, *, dtype: str = "float16") -> Machine:
    """Return this machine with its free memory now and the rates of the last probe, or assumed rates."""
    host_bytes = free_host_bytes()
    machine = Machine(
        device=str(device),
        device_memory_bytes=host_bytes,
        host_memory_bytes=host_bytes,
        runtime_bytes=host_runtime_bytes(),
        measured=False,
    )
    if device.type != "cpu":
        machine = replace(
            machine,
            device_memory_bytes=_free_device_bytes(device),
            runtime_bytes=_ACCELERATOR_RUNTIME_BYTES,
            memory_bytes_per_s=300e9,
            flops_per_s=3e13,
            host_pinning=_host_pinning(device),
        )
    return _with_kept_rates(machine, device, dtype)


@cache
def host_runtime_bytes() -> int:
    """Return what a process on this CPU takes in addition to weights, cache and activations.

    It is found once per process, so that all its plans agree.
    """
    num_bytes = _HOST_RUNTIME_BYTES
    if torch.cpu._is_amx_tile_supported():
        num_bytes += _TILE_KERNEL_BYTES
    if maps_whole_folios(_mapped_code_pages(), mmap.PAGESIZE):
        num_bytes += _WHOLE_FOLIO_BYTES
    return num_bytes


def maps_whole_folios(is_mapped: Sequence[bool], page_bytes: int) -> bool:
    """Return whether the kernel maps code in large pieces, judged by which of a library's pages are mapped.

    When a page is touched, Linux also maps others that are in the page cache: a window of 64 KiB around it,
    or (seen on 6.18) the whole folio, a block of pages that may be a MiB. This looks at the chunks of 256 KiB
    with at least one mapped page: with windows, most of them are mapped in part; with folios, nearly all are
    mapped entirely.

    Args:
        is_mapped: for each page of the library's code, in order, from a multiple of the chunk's size.
        page_bytes: the size of a page.
    """
    chunk = _CHUNK_BYTES // page_bytes
    counts = [sum(is_mapped[start : start + chunk]) for start in range(0, len(is_mapped) - chunk + 1, chunk)]
    touched = sum(count > 0 for count in counts)
    return counts.count(chunk) > touched / 2


def _mapped_code_pages() -> list[bool]:
    """Return which pages of torch's code this process maps, from the first whole chunk of the file on.

    Empty where the system does not say so.
    """
    try:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        area = next(line for line in lines if "x" in line[1] and _CODE_LIBRARY in line[-1])
        start, end = (int(address, 16) for address in area[0].split("-"))
        start += -int(area[2], 16) % _CHUNK_BYTES
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(start // mmap.PAGESIZE * _PAGEMAP_ENTRY_BYTES)
            entries = pagemap.read(max(end - start, 0) // mmap.PAGESIZE * _PAGEMAP_ENTRY_BYTES)
    except (OSError, StopIteration):
        return []
    # an entry's highest bit says that the page is mapped; its last byte has it
    return [entry >= 128 for entry in entries[_PAGEMAP_ENTRY_BYTES - 1 :: _PAGEMAP_ENTRY_BYTES]]


def _host_pinning(device: torch.device) -> HostPinning:
    """Return what the driver pins: MPS needs nothing, and CUDA's and ROCm's pin memory where it is."""
    if device.type == "mps" or hasattr(torch.get_device_module(device), "cudart"):
        return HostPinning.ALL
    return HostPinning.ROUNDED


def _with_kept_rates(machine: Machine, device: torch.device, dtype: str) -> Machine:
    """Fill in what a probe has measured: disk and copies for every dtype, arithmetic for the probe's own."""
    kept = _read_rates()
    moving, computing = kept.get(device.type), kept.get(_rate_key(device, dtype))
    if moving is None:
        return machine
    machine = replace(machine, **{name: moving[name] for name in _MOVING_RATES if name in moving})
    if computing is None:
        return machine
    return replace(machine, **{name: computing[name] for name in _COMPUTING_RATES}, measured=True)


def free_host_bytes() -> int:
    """Return the host memory that is free now; in a control group, no more than its limit leaves."""
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit_bytes, used_bytes = _read_int(limit), _read_int(used)
        if limit_bytes is not None and used_bytes is not None:
            free = min(free, max(limit_bytes - used_bytes, 0))
    return free


def trim_malloc() -> bool:
    """Make this process return freed memory to the system at once; return whether that works (glibc only).

    Whenever a large allocation is freed, glibc raises the size from which it returns memory. After a long
    prompt, freed activations and grown caches then stay in a fragmented heap, and a tight budget is exceeded
    by tens of MiB. The setting holds for the whole process.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (missing in other C libraries)
        done = libc.mallopt(_M_MMAP_THRESHOLD, _MALLOC_THRESHOLD_BYTES) and libc.mallopt(
            _M_TRIM_THRESHOLD, _MALLOC_THRESHOLD_BYTES
        )
    except (OSError, AttributeError, TypeError):
        return False
    return bool(done)


def _read_int(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _free_device_bytes(device: torch.device) -> int:
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[0])
    if hasattr(module, "recommended_max_memory"):  # MPS shares host memory
        return int(module.recommended_max_memory())
    return free_host_bytes()


def _rates_file() -> Path:
    return cache_directory() / "machine.json"


def _rate_key(device: torch.device, dtype: str) -> str:
    return f"{device.type}/{dtype}"


def _read_rates() -> dict[str, Any]:
    try:
        kept = json.loads(_rates_file().read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def probe_machine(
    path: Path | None = None, device: str = "auto", *, dtype: str = "float16", keep: bool = True
) -> Machine:
    """Measure disk, copies, device memory and matrix products, in a few seconds.

    Args:
        path: a directory on the disk to measure, where 256 MiB are written and removed, or a file of at least
            64 MiB to read; by default the user's cache directory.
        device: torch device string.
        dtype: the dtype of the matrix products.
        keep: keep the rates in the user's cache for later plans.

    Raises:
        PlanError: the device is unknown, or nothing can be written or read at `path`.
    """
    chosen = resolve_device(device)
    machine = replace(
        describe_machine(chosen, dtype=dtype),
        disk_bytes_per_s=_measure_disk(path or _rates_file().parent),
        copy_bytes_per_s=_measure_copy(chosen),
        pageable_bytes_per_s=_measure_host_copy(),
        memory_bytes_per_s=_measure_products(chosen, dtype, tokens=1)[0],
        flops_per_s=_measure_products(chosen, dtype, tokens=256)[1],
        measured=True,
    )
    if keep:
        known = asdict(machine)
        moving = {name: known[name] for name in _MOVING_RATES}
        computing = {name: known[name] for name in _COMPUTING_RATES}
        file = _rates_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({**_read_rates(), chosen.type: moving, _rate_key(chosen, dtype): computing}, indent=1)
        )
    return machine


def _measure_disk(path: Path) -> float:
    try:
        if path.is_file():
            return _read_rate(path, min(path.stat().st_size, 4 * _PROBE_BYTES))
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix="layerstream-probe-") as file:
            block = os.urandom(4 * MIB)
            for _ in range(_PROBE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            _drop_cache(file.fileno())
            return _read_rate(Path(file.name), _PROBE_BYTES)
    except OSError as error:
        raise PlanError(
            f"the disk at {path} cannot be measured: {error}; give a directory that you can write to"
        ) from error


def _drop_cache(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_rate(path: Path, num_bytes: int) -> float:
    buffer = AlignedBuffer(num_bytes)
    request = ReadRequest(
        path=str(path),
        offset=0,
        num_bytes=num_bytes,
        target=buffer.view(0, num_bytes),
        address=buffer.address,
    )
    with DiskReader() as reader:
        start_s = perf_counter()
        reader.submit([request]).wait()
        duration_s = perf_counter() - start_s
    del request
    buffer.close()
    return num_bytes / duration_s


def _measure_host_copy() -> float:
    """Return bytes per second of copies within host memory, by the threads that also read."""
    num_bytes = _PROBE_BYTES // 4
    source, target = AlignedBuffer(num_bytes), AlignedBuffer(num_bytes)
    with DiskReader() as reader:
        reads = reader.prepare_copy(
            source.view(0, num_bytes), source.address, target.view(0, num_bytes), target.address
        )
        return num_bytes / _shortest_s(lambda: reader.submit(reads).wait(), torch.device("cpu"))


def _measure_copy(device: torch.device) -> float:
    pinned = device.type != "cpu"
    source = torch.ones(_PROBE_BYTES // 4, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty_like(source, device=device)
    duration_s = _shortest_s(lambda: target.copy_(source, non_blocking=True), device)
    return source.numel() / duration_s


def _measure_products(device: torch.device, dtype: str, tokens: int) -> tuple[float, float]:
    """Return (weight bytes per second, operations per second) of one linear layer with `tokens` rows."""
    kind: torch.dtype = getattr(torch, dtype)
    width = 2048 if device.type == "cpu" else 8192
    weight = torch.ones(4 * width, width, dtype=kind, device=device)
    rows = torch.ones(tokens, width, dtype=kind, device=device)
    duration_s = _shortest_s(lambda: torch.nn.functional.linear(rows, weight), device)
    return weight.numel() * weight.element_size() / duration_s, 2 * weight.numel() * tokens / duration_s


def _shortest_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, the shortest of four runs."""
    module, shortest_s = torch.get_device_module(device), float("inf")
    with module.device(device) if hasattr(module, "device") else nullcontext():
        for _ in range(4):
            start_s = perf_counter()
            work()
            module.synchronize()
            shortest_s = min(shortest_s, perf_counter() - start_s)
    return shortest_s
