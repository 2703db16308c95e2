"""The engine: inspect a model, build it as planned, and run one replica of it per device.

Here the rooms meet: architecture makes the empty model and its recipes, planning has decided where units
live, streaming moves them. The names below are imported on first use, because `simulate` needs them only for
a model without a profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .inspect import inspect_any

__all__ = ["inspect_any"]

__getattr__, __dir__ = lazy_exports(__name__, {".inspect": ("inspect_any",)})
