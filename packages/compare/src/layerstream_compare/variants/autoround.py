"""The 3-bit and 2-bit variants: AutoRound's plain rounding without calibration, weights packed in memory.

Runs in the worker. Chosen over torchao's Intx, which keeps one byte per weight, and over quanto, which has no
3-bit format. Rounding writes a copy to a temporary folder, which `close` removes; the load time includes it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import auto_round
import torch
from auto_round import AutoRound

from ..case import Case
from .loaded import Loaded, load_with_transformers, resolve_device, unquantized_modules

GROUP_COLUMNS = 64
"""Columns that share a scale and a zero point."""


def load(case: Case) -> Loaded:
    """Round the case's model to 3 or 2 bits and load the packed copy."""
    bits = int(case.variant.removeprefix("autoround-int"))
    folder = tempfile.TemporaryDirectory(prefix="layerstream-compare-")
    rounding = AutoRound(
        case.model,
        scheme=f"W{bits}A16",
        group_size=GROUP_COLUMNS,
        iters=0,
        disable_opt_rtn=True,
        # the model-free path reads shards in child processes, which some hosts forbid
        disable_model_free=True,
        device_map=resolve_device(case).type,
    )
    rounding.quantize_and_save(output_dir=folder.name, format="auto_round")
    # AutoRound chooses the name of the subfolder
    written = next(Path(folder.name).rglob("config.json")).parent
    loaded = load_with_transformers(case, path=written)
    loaded.release = folder.cleanup
    loaded.describe = partial(_facts, loaded.model)
    return loaded


def _facts(model: torch.nn.Module) -> dict[str, Any]:
    kernels = sorted({type(module).__module__ for module in model.modules() if hasattr(module, "qweight")})
    return {
        "library": f"auto-round {auto_round.__version__}",
        "kernel_modules": kernels,
        "unquantized": unquantized_modules(model),
        "note": "load time and load peak include rounding the whole model",
    }
