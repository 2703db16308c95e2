"""The bitsandbytes variants: LLM.int8, and 4-bit NormalFloat or floating point, optionally double-quantized.

Runs in the worker. On a CPU with AVX512_BF16 the 4-bit weights are repacked at the first forward and computed
in bfloat16.
"""

from __future__ import annotations

import logging
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from ..case import Case
from .loaded import Loaded, load_with_transformers, resolve_device, run_dtype, unquantized_modules
from .registry import VariantUnavailableError

BLOCK_ROWS = 32
"""The number of rows must be a multiple of this for the repacked CPU kernel."""

BLOCK_COLUMNS = 64
"""Columns per scale. The number of columns must be a multiple of this for the repacked CPU kernel."""


class _CastFilter(logging.Filter):
    """Drop the warning that the 8-bit matmul logs on every call."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether `record` is anything else."""
        return "inputs will be cast" not in record.getMessage()


def load(case: Case) -> Loaded:
    """Load the case's model, quantized by bitsandbytes.

    Raises:
        VariantUnavailableError: the CPU's 4-bit kernel does not support the shape of a matrix.
    """
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_CastFilter())
    on_cpu = resolve_device(case).type == "cpu"
    if case.variant != "bnb-int8" and on_cpu and has_avx512bf16():  # type: ignore[no-untyped-call]
        _reject_unsupported_shapes(case)
    loaded = load_with_transformers(
        case, quantization_config=quantization_config(case.variant, run_dtype(case))
    )
    loaded.describe = lambda: _facts(loaded.model)
    return loaded


def quantization_config(variant: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return transformers' configuration for a `bnb-*` variant whose 4-bit matmuls run in `compute_dtype`."""
    if variant == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    _, quant_type, *rest = variant.split("-")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=rest == ["dq"],
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _reject_unsupported_shapes(case: Case) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(case.model))
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        if module.out_features % BLOCK_ROWS or module.in_features % BLOCK_COLUMNS:
            raise VariantUnavailableError(
                f"{case.variant} cannot run this model on a CPU: {name} is {module.out_features} x "
                f"{module.in_features}, and the 4-bit kernel needs multiples of {BLOCK_ROWS} x "
                f"{BLOCK_COLUMNS}"
            )


def _facts(model: torch.nn.Module) -> dict[str, Any]:
    weights = [module.weight for module in model.modules() if isinstance(module, Linear4bit)]
    states = [getattr(weight, "quant_state", None) for weight in weights]
    facts: dict[str, Any] = {
        "library": f"bitsandbytes {bitsandbytes.__version__}",
        "unquantized": unquantized_modules(model),
    }
    if weights:
        facts["repacked_for_cpu"] = all(getattr(state, "packing_format_for_cpu", False) for state in states)
        facts["scales_are_quantized_now"] = any(getattr(state, "nested", False) for state in states)
        if facts["repacked_for_cpu"]:
            facts["note"] = (
                "the CPU kernel repacked the weights, computes in bfloat16 and keeps its scales in bfloat16"
            )
    return facts
