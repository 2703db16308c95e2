"""Format divergences, shares and plain numbers. Sizes and durations are formatted by layerstream."""

from __future__ import annotations

import math


def format_nats(nats: float) -> str:
    """Return a divergence, such as `"0.021"` or `"2.2e-05"`; `"0"` only if it is exactly zero."""
    if not math.isfinite(nats):
        return _not_finite(nats)
    return "0" if nats == 0 else f"{nats:.2g}"


def format_share(share: float) -> str:
    """Return a share as a percentage, such as `"92.2 %"`; `"100 %"` only if it is exactly one."""
    if share == 1:
        return "100 %"
    if share > 0.999:
        return f"{min(share * 100, 99.99):.2f} %"
    return f"{share * 100:.1f} %"


def format_number(value: float) -> str:
    """Return a plain number with three significant digits."""
    if not math.isfinite(value):
        return _not_finite(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def _not_finite(value: float) -> str:
    return "∞" if value > 0 else "not a number"
