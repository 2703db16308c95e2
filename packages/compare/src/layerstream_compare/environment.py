"""What a result depends on besides its case: versions, processor, memory, accelerators, commit.

It reads package metadata and small files, and imports none of the packages it names. No torch, no layerstream.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .variants.registry import cpu_flags

PACKAGES = (
    "layerstream",
    "layerstream-compare",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "auto-round",
    "flash-attn",
    "kernels",
    "safetensors",
    "numpy",
)
"""Distributions whose versions may change a figure."""

CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
"""Flags that choose between kernels in torch and bitsandbytes."""

ALLOCATOR_AND_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "HF_HUB_OFFLINE",
)


def describe_environment() -> dict[str, Any]:
    """Return this machine and its software as JSON-ready data; what cannot be found out is left out.

    `accelerators` lists the GPUs that a driver shows (name, and driver's version), by its files: no driver is asked.
    """
    known = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": package_versions(),
        "cpu": {
            "model": cpu_model(),
            "flags": [flag for flag in CPU_FLAGS if flag in cpu_flags()],
            "cores": usable_cores(),
        },
        "memory_bytes": memory_bytes(),
        "accelerators": accelerators(),
        "variables": {name: os.environ[name] for name in ALLOCATOR_AND_THREADS if name in os.environ},
        "commit": source_commit(),
        "load_average": list(os.getloadavg()),
    }
    return {name: value for name, value in known.items() if value is not None}


def package_versions() -> dict[str, str]:
    """Return the versions of the installed `PACKAGES`, from their metadata."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str | None:
    """Return the processor's name from /proc/cpuinfo, or what Python knows of it."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or None


def usable_cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the machine's memory, or the control group's limit where that is less."""
    total = next(
        (
            line.split()[1]
            for line in _read(Path("/proc/meminfo")).splitlines()
            if line.startswith("MemTotal")
        ),
        None,
    )
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    sizes = ([int(total) * 1024] if total else []) + ([int(limit)] if limit.isdigit() else [])
    return min(sizes, default=None)


def accelerators() -> list[str]:
    """Return each NVIDIA GPU's name and driver, as the driver's files give them; empty where there is none."""
    driver = _read(Path("/proc/driver/nvidia/version")).partition("Module")[2].split()[:1]
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = next(
            (line.partition(":")[2].strip() for line in _read(path).splitlines() if line.startswith("Model")),
            "NVIDIA GPU",
        )
        found.append(f"{model} (driver {driver[0]})" if driver else model)
    return found


def source_commit() -> str | None:
    """Return the git commit of this package's source, marked `-dirty` when changed; None when it runs from no checkout."""
    here = Path(__file__)
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        # another project's checkout may hold the virtual environment
        return None
    return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(file: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(file.parent), *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
