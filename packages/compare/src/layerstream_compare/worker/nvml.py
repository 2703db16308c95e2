"""Read from NVML how much GPU memory this process uses: allocator, context, kernels and workspaces.

Runs in the worker. It needs the package `nvidia-ml-py`, an extra; without it, or without an NVIDIA GPU, the
figure is 0.
"""

from __future__ import annotations

import importlib
import os

import torch

from ..variants.registry import has_package

_PACKAGE = "pynvml"


def process_bytes(device: torch.device) -> int:
    """Return the bytes of `device` that NVML counts for this process; 0 if NVML cannot say.

    In a container NVML may list the process under another id. The figure is 0 then too, so that other
    processes' memory is never reported.
    """
    if device.type != "cuda" or torch.version.cuda is None or not has_package(_PACKAGE):
        return 0
    nvml = importlib.import_module(_PACKAGE)
    try:
        nvml.nvmlInit()
        try:
            # by UUID: NVML ignores CUDA_VISIBLE_DEVICES, so indices may differ
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return 0
    return sum(process.usedGpuMemory or 0 for process in running if process.pid == os.getpid())
