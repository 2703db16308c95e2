"""The figures of memory, device and host memory apart.

On a CPU there is one memory, and the figures of a device and of host memory are not measured (None): they
would repeat the others. On an accelerator, figures without a memory in their title are the sum of both.
"""

from __future__ import annotations

from collections.abc import Callable

from layerstream import format_bytes

from ..measurement import Measurement, Memory, PhaseMemory
from .metric import Metric

Read = Callable[[Memory], "int | None"]


def _memory(key: str, title: str, includes: str, read: Read) -> Metric:
    def value(measurement: Measurement) -> float | None:
        return None if measurement.memory is None else read(measurement.memory)

    return Metric(key=key, group="memory", title=title, includes=includes, value=value, show=format_bytes)


def _with_device(read: Read) -> Read:
    return lambda memory: read(memory) if memory.has_device else None


def _highest(key: str) -> Read:
    """Return a reader of a counter's highest value over all phases; a counter that stayed 0 has none."""

    def read(memory: Memory) -> int | None:
        return max((getattr(phase, key) for phase in memory.phases), default=0) or None

    return read


_device_peak = _highest("device_allocated_bytes")


def _phases(memory: Memory) -> dict[str, PhaseMemory]:
    return {phase.phase: phase for phase in memory.phases}


def _needed(memory: Memory) -> int:
    return memory.held_bytes + _working(memory)


def _working(memory: Memory) -> int:
    if memory.has_device:
        return _device_working(memory) + _host_working(memory)
    return max(0, memory.peak_over_baseline_bytes - memory.held_bytes - (_mapped(memory) or 0))


def _device_working(memory: Memory) -> int:
    return max(0, (_device_peak(memory) or 0) - memory.device_held_bytes)


def _host_working(memory: Memory) -> int:
    """Return the host memory that running takes on top of the weights there; 0 if a phase is missing.

    Loading is left out: its peak counts the mapped checkpoint, which does not stay and can be reclaimed.
    """
    phases = _phases(memory)
    running = [phases[name] for name in ("warm-up", "first-token", "decode") if name in phases]
    if "import" not in phases or not running:
        return 0
    start = phases["import"].anonymous_bytes + phases["import"].shared_bytes
    peak = max(phase.peak_bytes - phase.file_bytes for phase in running)
    return max(0, peak - start - (memory.host_held_bytes - memory.mapped_held_bytes))


def _mapped(memory: Memory) -> int | None:
    phases = _phases(memory)
    if not {"import", "decode"} <= phases.keys():
        return None
    return max(0, phases["decode"].file_bytes - phases["import"].file_bytes - memory.mapped_held_bytes)


def _prefill_extra(memory: Memory) -> int | None:
    phases = _phases(memory)
    # the warm-up loads mapped weights into memory; after it they are not part of the prompt's cost
    before = phases.get("warm-up") or phases.get("load")
    if before is None or "first-token" not in phases:
        return None
    if memory.has_device:
        return max(0, phases["first-token"].device_allocated_bytes - memory.device_held_bytes)
    return max(0, phases["first-token"].peak_bytes - before.resident_bytes)


MEMORY_METRICS: tuple[Metric, ...] = (
    _memory(
        "needed_bytes",
        "needed",
        "Held plus working memory: the peak without file pages that the system reclaims when memory is short",
        _needed,
    ),
    _memory(
        "held_bytes",
        "held",
        "Weights and quantization state that the loaded model keeps: its storages, each counted once. A "
        "streamed model's slots and buffers are included; activations and library code are not. On an "
        "accelerator: device and host memory together",
        lambda memory: memory.held_bytes,
    ),
    _memory(
        "working_bytes",
        "working",
        "Peak over the baseline minus held and mapped: activations, key-value cache, temporary copies during "
        "loading. On an accelerator: device working plus host working",
        _working,
    ),
    _memory(
        "device_held_bytes",
        "device held",
        "The part of held on the accelerator. A streamed model's slots are there",
        _with_device(lambda memory: memory.device_held_bytes),
    ),
    _memory(
        "device_working_bytes",
        "device working",
        "The peak of the accelerator's allocator minus what is held there: activations, key-value cache, "
        "temporary copies",
        _with_device(_device_working),
    ),
    _memory(
        "device_peak_bytes",
        "device peak",
        "Peak of the accelerator's allocator in any phase",
        _device_peak,
    ),
    _memory(
        "device_reserved_bytes",
        "device reserved",
        "Most memory that the accelerator's allocator reserved in any phase, cached free blocks included",
        _highest("device_reserved_bytes"),
    ),
    _memory(
        "device_process_bytes",
        "device process",
        "Most memory that NVML counted for the process at the end of a phase: the allocator's memory, the "
        "CUDA context and kernels",
        _highest("device_process_bytes"),
    ),
    _memory(
        "host_held_bytes",
        "host held",
        "The part of held in host memory: a streamed model's weights that stay there, and its pinned buffers "
        "on the way to the device",
        _with_device(lambda memory: memory.host_held_bytes),
    ),
    _memory(
        "host_working_bytes",
        "host working",
        "Private and pinned host memory at the peak of warm-up, first token and decode, minus what there was "
        "after all imports and minus host held. Loading and mapped files are left out",
        _with_device(_host_working),
    ),
    _memory(
        "host_needed_bytes",
        "host needed",
        "Host held plus host working: what running takes in host memory",
        _with_device(lambda memory: memory.host_held_bytes + _host_working(memory)),
    ),
    _memory(
        "mapped_bytes",
        "mapped",
        "File pages that stay mapped although no weight is kept in them: the checkpoint before quantization, "
        "library code. They count as resident, but the system reclaims them when memory is short",
        _mapped,
    ),
    _memory(
        "peak_over_baseline_bytes",
        "peak",
        "Highest resident set of load, warm-up, first token and decode, minus the resident set after all "
        "imports; mapped files included. Device memory is not part of it",
        lambda memory: memory.peak_over_baseline_bytes,
    ),
    _memory(
        "load_spike_bytes",
        "load spike",
        "Peak during loading minus the resident set after it: needed only briefly, but needed. On an "
        "accelerator: host memory, where a checkpoint that is mapped while it is copied counts too",
        lambda memory: memory.load_spike_bytes,
    ),
    _memory(
        "prefill_extra_bytes",
        "prefill extra",
        "Peak until the first token minus the resident set after the warm-up: the prompt's activations, "
        "attention and cache. On an accelerator: its allocator's peak until then minus device held",
        _prefill_extra,
    ),
    _memory(
        "baseline_bytes",
        "baseline",
        "Resident set after importing everything, before loading",
        lambda memory: memory.baseline_bytes,
    ),
)
"""Every figure of memory, in column order."""
