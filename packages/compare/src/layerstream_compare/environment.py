"""Describe the machine and software that a result depends on: versions, CPU, memory, accelerators, commit.

It reads package metadata and small files, and imports none of the packages it lists.
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
    "nvidia-ml-py",
    "safetensors",
    "numpy",
)
"""Distributions whose versions can change a figure."""

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
"""CPU flags by which torch and bitsandbytes select kernels."""

ENVIRONMENT_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "HF_HUB_OFFLINE",
)
"""Environment variables that can change a figure."""


def describe_environment() -> dict[str, Any]:
    """Return this machine and its software as JSON-ready data; anything that cannot be determined is omitted.

    `accelerators` lists GPU names and driver versions from the driver's files; the driver itself is not
    called.
    """
    entries = {
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
        "variables": {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ},
        "commit": source_commit(),
        "load_average": list(os.getloadavg()),
    }
    return {name: value for name, value in entries.items() if value is not None}


def package_versions() -> dict[str, str]:
    """Return the versions of the installed `PACKAGES`, from their metadata."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def cpu_model() -> str | None:
    """Return the CPU's name from /proc/cpuinfo, or else from `platform`."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or None


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the machine's memory, or the control group's limit if that is lower."""
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
    """Return name and driver version of each NVIDIA GPU, read from the driver's files."""
    driver = _read(Path("/proc/driver/nvidia/version")).partition("Module")[2].split()[:1]
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = next(
            (line.partition(":")[2].strip() for line in _read(path).splitlines() if line.startswith("Model")),
            "NVIDIA GPU",
        )
        gpus.append(f"{model} (driver {driver[0]})" if driver else model)
    return gpus


def source_commit() -> str | None:
    """Return the git commit of this package's source, with `-dirty` if modified; None outside a checkout."""
    here = Path(__file__)
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        # an installed copy may lie inside another project's checkout
        return None
    return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(file: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(file.parent), *arguments]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
