"""What the driver says this process holds of its GPU: the allocator's pool and, on top of it, context, kernels and workspaces.

Worker's side. It knows NVML by the package `nvidia-ml-py`, an extra; without it, or without an NVIDIA GPU, the figure is 0.
"""

from __future__ import annotations

import importlib
import os

import torch

from ..variants.registry import has_package

_PACKAGE = "pynvml"


def process_bytes(device: torch.device) -> int:
    """Return the bytes of `device` that NVML counts for this process; 0 where it cannot be asked or does not tell.

    Inside a container NVML may know the process by another number: 0 again, since nobody else's memory is to be shown.
    """
    if device.type != "cuda" or torch.version.cuda is None or not has_package(_PACKAGE):
        return 0
    nvml = importlib.import_module(_PACKAGE)
    try:
        nvml.nvmlInit()
        try:
            # by its identity: NVML does not know CUDA_VISIBLE_DEVICES
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return 0
    return sum(process.usedGpuMemory or 0 for process in running if process.pid == os.getpid())
