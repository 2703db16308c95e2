"""The `torchao-int8` variant: 8-bit weights alone, a second opinion beside bitsandbytes.

Worker's side.
"""

from __future__ import annotations

from typing import Any

import torch
import torchao
from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow
from transformers import TorchAoConfig

from ..case import Case
from .loaded import Loaded, load_with_transformers, run_dtype, unquantized_modules

GROUP_COLUMNS = 64
"""Columns that share a scale where rows cannot."""


def load(case: Case) -> Loaded:
    """Load the case's model with 8-bit weights: a scale a row, or a scale for 64 columns where the run dtype is float16."""
    # with a scale a row torchao 0.18 multiplies by the integers first and scales the sum: beyond float16's 65504, NaN follows
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
