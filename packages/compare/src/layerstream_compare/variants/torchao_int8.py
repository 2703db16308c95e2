"""The `torchao-int8` variant: 8-bit weights only, an alternative to bitsandbytes. Runs in the worker."""

from __future__ import annotations

from typing import Any

import torch
import torchao
from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow
from transformers import TorchAoConfig

from ..case import Case
from .loaded import Loaded, load_with_transformers, run_dtype, unquantized_modules

GROUP_COLUMNS = 64
"""Columns per scale when one scale per row is not possible."""


def load(case: Case) -> Loaded:
    """Load the case's model with 8-bit weights: one scale per row, or per 64 columns in float16."""
    # with one scale per row, torchao 0.18 sums unscaled products first: above float16's 65504 this gives NaN
    granularity = PerGroup(GROUP_COLUMNS) if run_dtype(case) is torch.float16 else PerRow()
    config = TorchAoConfig(Int8WeightOnlyConfig(granularity=granularity))
    loaded = load_with_transformers(case, quantization_config=config)
    loaded.describe = lambda: _facts(loaded.model, granularity)
    return loaded


def _facts(model: torch.nn.Module, granularity: object) -> dict[str, Any]:
    return {
        "library": f"torchao {torchao.__version__}",
        "granularity": str(granularity),
        "unquantized": unquantized_modules(model),
    }
