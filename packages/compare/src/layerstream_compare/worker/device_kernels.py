"""Record which kernels an accelerator runs, with torch's profiler. Runs in the worker.

The operators that torch dispatches do not tell: the library behind one chooses its kernel at the call, by
shape, dtype and card. A CPU has no such kernels, only operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from .generation import synchronize

_NOT_PRODUCTS = ("at::native::", "at_cuda_detail::", "Memcpy", "Memset")
"""What the names of kernels begin with that compute no product of matrices and no attention."""

_LONGEST_NAME = 120


@contextmanager
def recorded_kernels(device: torch.device) -> Iterator[Counter[str]]:
    """Count the kernels of attention and matrix products that `device` runs inside the context.

    The counts are complete once the context has ended. They stay empty on a CPU, and where torch cannot
    profile the device.
    """
    counts: Counter[str] = Counter()
    activity: ProfilerActivity | None = getattr(ProfilerActivity, device.type.upper(), None)
    if device.type == "cpu" or activity is None or activity not in supported_activities():
        yield counts
        return
    with profile(activities=[activity]) as profiler:
        yield counts
        synchronize(device)
    names = (event.name for event in profiler.events() or () if event.device_type.name != "CPU")
    counts.update(short_name(name) for name in names if _is_product(name))


def short_name(kernel: str) -> str:
    """Return a kernel's name without its return type and the types of its arguments."""
    name = kernel.removeprefix("void ")
    if name.endswith(")"):
        name = name[: _matching_parenthesis(name)]
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _matching_parenthesis(name: str) -> int:
    """Return the index of the parenthesis that the last character closes."""
    depth = 0
    for index in range(len(name) - 1, -1, -1):
        depth += (name[index] == ")") - (name[index] == "(")
        if depth == 0:
            return index
    return len(name)


def _is_product(kernel: str) -> bool:
    # eager attention has its softmax among torch's own kernels
    name = kernel.removeprefix("void ")
    return "softmax" in name.lower() or not name.startswith(_NOT_PRODUCTS)
