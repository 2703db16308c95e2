"""Numbers as people write them, and prompt lengths as people type them.

layerstream has such words too, but its names come with torch, which the parent process must not load.
"""

from __future__ import annotations

import math
import re

from .errors import ExperimentError

_SIZES = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
_SIZE = re.compile(r"\s*(?=.*[1-9])([0-9]*\.)?[0-9]+\s*[kmgt]?i?b?\s*", re.IGNORECASE)
_LENGTH = re.compile(r"([0-9]+)(k?)", re.IGNORECASE)


def is_size(text: str) -> bool:
    """Return whether `text` is a number of bytes above 0, or such a number with a unit: `"6 GiB"`, `"500MB"`, `"6G"`."""
    return _SIZE.fullmatch(text) is not None


def format_bytes(num_bytes: float) -> str:
    """Return `num_bytes` with a binary unit: `"1.72 GiB"`, `"257 MiB"`, `"512 B"`."""
    for unit, size in _SIZES:
        if abs(num_bytes) >= size:
            return f"{_three_digits(num_bytes / size)} {unit}"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """Return a duration: `"0.8 ms"`, `"51 ms"`, `"12.3 s"`, `"4 min 05 s"`."""
    if seconds < 1:
        return f"{_three_digits(seconds * 1000)} ms"
    if seconds < 60:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def format_nats(nats: float) -> str:
    """Return a divergence: `"0"` only where it is exactly that, `"0.021"`, `"2.2e-05"`."""
    return "0" if nats == 0 else f"{nats:.2g}" if math.isfinite(nats) else "∞" if nats > 0 else "not a number"


def format_share(share: float) -> str:
    """Return a share as a percentage: `"92.2 %"`; `"100 %"` only where it is exactly that."""
    return (
        "100 %"
        if share == 1
        else f"{min(share * 100, 99.99):.2f} %"
        if share > 0.999
        else f"{share * 100:.1f} %"
    )


def format_number(value: float) -> str:
    """Return a plain number with three digits."""
    return _three_digits(value)


def parse_length(text: str) -> int:
    """Return the tokens that a prompt length such as `"512"` or `"4k"` (4096) names.

    Raises:
        ExperimentError: it is neither a number nor a number of thousands.
    """
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise ExperimentError(
            f"{text!r} is no prompt length: write a number of tokens such as 512, or 4k for 4096"
        )
    return int(match[1]) * (1024 if match[2] else 1)


def _three_digits(value: float) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    size = abs(value)
    if size == 0:
        return "0"
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.2g}"
    )
