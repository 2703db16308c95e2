"""Read from NVML, NVIDIA's driver, what it counts for this process and what the GPU is. Runs in the worker.

It needs the package `nvidia-ml-py`, an extra. What NVML does not tell is absent from the results, never a
guess.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..variants.registry import has_package

_PACKAGE = "pynvml"


class _NoNvmlError(Exception):
    """NVML cannot be asked; the message says why."""


def process_bytes(device: torch.device) -> int:
    """Return the bytes of `device` that NVML counts for this process; 0 if NVML cannot say.

    That is everything: allocator, context, kernels and workspaces. In a container NVML may list the process
    under another id. The figure is 0 then too, so that other processes' memory is never reported.
    """
    try:
        with _opened(device) as (nvml, handle):
            running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            return sum(process.usedGpuMemory or 0 for process in running if process.pid == os.getpid())
    except _NoNvmlError:
        return 0


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return what NVML says about an NVIDIA GPU, under `nvml`, or one line that says why nothing is known.

    The memory in use is that of all processes. The link is as fast as it is now: a GPU at rest slows it down.
    """
    if not _is_nvidia(device):
        return {}
    try:
        with _opened(device) as (nvml, handle):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return {
                "nvml": {
                    "gpu": _text(nvml.nvmlDeviceGetName(handle)),
                    "driver": _text(nvml.nvmlSystemGetDriverVersion()),
                    "memory_bytes": int(memory.total),
                    "memory_in_use_bytes": int(memory.used),
                    "pcie_generation": int(nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
                    "pcie_lanes": int(nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)),
                }
            }
    except _NoNvmlError as error:
        return {"nvml": str(error)}


def _is_nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None


@contextmanager
def _opened(device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Yield NVML and its handle of `device`.

    Raises:
        _NoNvmlError: there is no NVML, or one of its calls failed.
    """
    if not _is_nvidia(device):
        raise _NoNvmlError(f"{device} is not an NVIDIA GPU")
    if not has_package(_PACKAGE):
        raise _NoNvmlError("the package nvidia-ml-py is not installed: pip install nvidia-ml-py")
    nvml = importlib.import_module(_PACKAGE)
    try:
        nvml.nvmlInit()
        try:
            # by UUID: NVML ignores CUDA_VISIBLE_DEVICES, so indices may differ
            yield nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise _NoNvmlError(f"NVML: {error}") from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
