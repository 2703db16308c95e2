"""Sizes, rates and dtypes as numbers and as text.

Everything inside layerstream counts in plain bytes (int) and seconds (float); only text for people uses GiB.
"""

from __future__ import annotations

import re

from ..errors import PlanError

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

DTYPE_BITS: dict[str, int] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e8m0fnu": 8,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "bool": 8,
    "complex64": 64,
}
"""Bits of one element, by torch's dtype name."""

_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str | int) -> int:
    """Return the bytes that `text` stands for.

    Args:
        text: an int (bytes) or a string such as `"6 GiB"`, `"500MB"`, `"6G"`. `GiB` is binary, `GB` is
            decimal, and a bare `G` is binary, as is usual for memory.

    Raises:
        PlanError: the text is not a size, or not above 0.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        match = _SIZE.fullmatch(str(text))
        if match is None:
            raise PlanError(
                f"{text!r} is not a size: give a number of bytes, or text such as '6 GiB' or '500 MB'"
            )
        number, prefix, binary = match.groups()
        decimal = bool(prefix) and not binary and str(text).strip().lower().endswith("b")
        size = int(float(number) * (1000 if decimal else 1024) ** _POWER[prefix.lower()])
    if size <= 0:
        raise PlanError(f"{text!r} is not a size: give more than 0 bytes")
    return size


def format_bytes(num_bytes: float) -> str:
    """Return `num_bytes` as text: `"1.72 GiB"`, `"512 B"`."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= size:
            value = num_bytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def format_rate(bytes_per_s: float) -> str:
    """Return a rate in decimal gigabytes per second, the unit that disks are sold by: `"2.93 GB/s"`."""
    return f"{bytes_per_s / 1e9:.2f} GB/s"


def format_seconds(seconds: float) -> str:
    """Return a duration as text: `"4.27 ms"`, `"350 ms"`, `"1.53 s"`, `"4 min 05 s"`, `"2 h 10 min"`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def rounded_up(num_bytes: int) -> int:
    """Return the smallest power of two that is at least `num_bytes`."""
    return 1 << max(0, num_bytes - 1).bit_length()


def dtype_bytes(dtype: str, num_elements: int = 1) -> int:
    """Return the bytes of `num_elements` of torch dtype `dtype` (its name, without `torch.`), rounded up.

    Raises:
        PlanError: the dtype is unknown.
    """
    if dtype not in DTYPE_BITS:
        raise PlanError(f"unknown dtype {dtype!r}: give one of {', '.join(DTYPE_BITS)}")
    return (DTYPE_BITS[dtype] * num_elements + 7) // 8


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is at least `value`."""
    return -(-value // alignment) * alignment
