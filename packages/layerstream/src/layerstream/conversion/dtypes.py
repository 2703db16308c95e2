"""Decide in which dtype a tensor is stored, and convert its values.

Values change only where the user asks for another dtype, or where the source is quantized and has no dtype
of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from ..checkpoint.new_shards import NewTensor
from ..errors import PlanError, UnsupportedFormatError
from .source import SourceTensor

CHOICES = ("float16", "bfloat16", "float32")
_FLOATS = (*CHOICES, "float64")
_OF_QUANTIZED = "float16"


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that weights cannot be stored in.

    Raises:
        PlanError: it is neither `"auto"` nor one of `CHOICES`.
    """
    if dtype not in ("auto", *CHOICES):
        raise PlanError(f"dtype={dtype!r} is not possible: give auto or one of {', '.join(CHOICES)}")


def stored_dtype(tensor: SourceTensor, dtype: str) -> str:
    """Return the dtype in which `tensor` is stored when the user asks for `dtype`."""
    if tensor.dtype not in _FLOATS:
        return tensor.dtype
    if dtype != "auto":
        return dtype
    return _OF_QUANTIZED if tensor.is_quantized else tensor.dtype


def main_dtype(tensors: Iterable[NewTensor]) -> str:
    """Return the floating dtype that takes the most bytes."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in _FLOATS:
            sizes[tensor.dtype] += tensor.num_bytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def as_stored(piece: torch.Tensor, dtype: str, name: str) -> memoryview:
    """Return the bytes of `piece` in `dtype`.

    Raises:
        UnsupportedFormatError: a number is too large for `dtype`.
    """
    wanted = getattr(torch, dtype)
    if piece.dtype != wanted:
        converted = piece.to(wanted)
        if _overflows(piece, converted):
            raise UnsupportedFormatError(
                f"tensor {name!r} holds {piece.abs().max().item():.4g}, which {dtype} cannot hold; give "
                "dtype='bfloat16' or 'float32' (--dtype on the command line)"
            )
        piece = converted
    return memoryview(piece.contiguous().view(torch.uint8).numpy())


def _overflows(piece: torch.Tensor, converted: torch.Tensor) -> bool:
    """Return whether a finite number has become infinite."""
    if piece.numel() == 0:
        return False
    low, high = converted.aminmax()
    if bool(low.isfinite() & high.isfinite()):
        # the usual case, and much faster to find out
        return False
    return bool((converted.isinf() & piece.isfinite()).any())
