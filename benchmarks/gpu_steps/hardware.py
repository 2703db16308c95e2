"""Step `hardware`: the machine and the versions that every figure depends on. It comes before the others."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from common import GIB, environment, hardware_slug

import layerstream as ls
from layerstream.machine import free_host_bytes, resolve_device

from .child import FAKE, Case, Child
from .lines import Found

OPTIONAL = {
    "pytest": "the tests that need an accelerator",
    "hypothesis": "nothing: the tests that need an accelerator run without it",
    "accelerate": "the comparison with its offload",
    "peft": "nothing here: no step has an adapter",
    "bitsandbytes": "compare's 8-bit and 4-bit variants",
}
"""Packages that may be absent, and what is skipped without them."""

QUERY = (
    "name,driver_version,memory.total,pcie.link.gen.current,pcie.link.gen.max,"
    "pcie.link.width.current,pcie.link.width.max,power.limit"
)


def cases(child: Child) -> Iterator[Case]:
    """Yield the one look at the machine."""
    yield "machine", 0.0, lambda: look(child)


def look(child: Child) -> Found:
    """Return the device that the other steps use, its name, and the facts for the result file."""
    device = child.device if child.device == FAKE else with_index(resolve_device(child.device))
    usage = shutil.disk_usage(child.work)
    facts: dict[str, Any] = {
        "device": device,
        **card_facts(device),
        **environment(child.work),
        # it runs from the checkout, and need not be installed
        "layerstream": ls.__version__,
        "memory available": f"{psutil.virtual_memory().available / GIB:.1f} GiB",
        "memory usable here": f"{free_host_bytes() / GIB:.1f} GiB",
        "disk free": f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB",
        "CUDA": torch.version.cuda or torch.version.hip or "none",
    }
    missing = {name: skipped for name, skipped in OPTIONAL.items() if importlib.util.find_spec(name) is None}
    for name, skipped in missing.items():
        facts[f"{name} is missing"] = f"skipped: {skipped}"
    card = facts.get("card") or {"fake": "fake device"}.get(device, "CPU")
    slug = facts["card"] if "card" in facts else f"{device}-{hardware_slug()}"
    return Found(figures={"device": device, "card": card, "slug": slug, "facts": facts})


def with_index(device: torch.device) -> str:
    """Return the device by type and number: some functions of torch take no other."""
    module = torch.get_device_module(device)
    if device.type == "cpu" or device.index is not None or not hasattr(module, "current_device"):
        return str(device)
    return f"{device.type}:{module.current_device()}"


def card_facts(device: str) -> dict[str, str]:
    """Return the card's name and memory by torch, and its link by nvidia-smi where that is there."""
    if device in (FAKE, "cpu"):
        return {}
    module = torch.get_device_module(device)
    facts: dict[str, str] = {}
    if hasattr(module, "get_device_name"):
        facts["card"] = module.get_device_name(device)
    if hasattr(module, "get_device_properties"):
        memory = getattr(module.get_device_properties(device), "total_memory", 0)
        facts["card's memory"] = f"{memory / GIB:.1f} GiB"
    facts["number of cards"] = str(module.device_count()) if hasattr(module, "device_count") else "1"
    return facts | nvidia_smi(torch.device(device).index or 0)


def nvidia_smi(index: int) -> dict[str, str]:
    """Return what nvidia-smi says of one card; nothing where it is absent or does not answer."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"PCIe": "unknown: nvidia-smi does not answer"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    found = dict(zip(QUERY.split(","), values, strict=False))
    return {
        "driver": found.get("driver_version", "?"),
        "PCIe": (
            f"generation {found.get('pcie.link.gen.current', '?')} of {found.get('pcie.link.gen.max', '?')}, "
            f"{found.get('pcie.link.width.current', '?')} of {found.get('pcie.link.width.max', '?')} lanes "
            "(an idle card may show less)"
        ),
        "power limit": found.get("power.limit", "?"),
    }
