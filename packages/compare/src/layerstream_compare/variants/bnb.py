"""The bitsandbytes variants: 8-bit LLM.int8, 4-bit NormalFloat and floating point, with and without double quantization.

Worker's side. On a CPU with AVX512_BF16 the 4-bit weights are repacked at the first forward and computed in bfloat16.
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
from .loaded import Loaded, load_with_transformers, run_dtype, settle_device, unquantized_modules
from .registry import VariantUnavailableError

BLOCK_ROWS = 32
"""The repacked CPU kernel takes matrices whose rows are a multiple of this."""

BLOCK_COLUMNS = 64
"""One scale for so many columns: the row's length must be a multiple, once repacked."""


class _CastFilter(logging.Filter):
    """Drop the warning that the 8-bit product logs in each call."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether `record` is anything else."""
        return "inputs will be cast" not in record.getMessage()


def load(case: Case) -> Loaded:
    """Load the case's model quantized by bitsandbytes.

    Raises:
        VariantUnavailableError: a matrix has a shape that the CPU's 4-bit kernel does not take.
    """
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_CastFilter())
    if case.variant != "bnb-int8" and settle_device(case).type == "cpu" and has_avx512bf16():  # type: ignore[no-untyped-call]
        _refuse_unfit_shapes(case)
    loaded = load_with_transformers(
        case, quantization_config=quantization_config(case.variant, run_dtype(case))
    )
    loaded.describe = lambda: _facts(loaded.model)
    return loaded


def quantization_config(variant: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the configuration of `bnb-int8`, `bnb-nf4`, `bnb-nf4-dq`, `bnb-fp4` or `bnb-fp4-dq`; computes in `compute_dtype`."""
    if variant == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    _, quant_type, *rest = variant.split("-")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=rest == ["dq"],
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _refuse_unfit_shapes(case: Case) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(case.model))
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        if module.out_features % BLOCK_ROWS or module.in_features % BLOCK_COLUMNS:
            raise VariantUnavailableError(
                f"{case.variant} cannot run this model on a CPU: {name} is {module.out_features} x {module.in_features}, and the "
                f"4-bit kernel takes multiples of {BLOCK_ROWS} x {BLOCK_COLUMNS}"
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
