"""Convert a number of parameters to bytes at every common precision.

Counts the weights alone: no quantization scales, no cache, no activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..errors import PlanError

BITS_BY_PRECISION: Mapping[str, int] = MappingProxyType(
    {"float32": 32, "float16": 16, "bfloat16": 16, "8-bit": 8, "4-bit": 4, "3-bit": 3, "2-bit": 2}
)
"""Bits of one parameter, by the precision's name."""


def bytes_by_precision(num_parameters: int) -> Mapping[str, int]:
    """Return the bytes of `num_parameters` weights by precision, from `float32` down to `2-bit`, rounded up.

    Raises:
        PlanError: the count is negative.
    """
    if num_parameters < 0:
        raise PlanError(f"the number of parameters is {num_parameters}: give 0 or more")
    return {name: (bits * num_parameters + 7) // 8 for name, bits in BITS_BY_PRECISION.items()}
