"""Small parts that every view uses: names of variants, figures as text, explanations and notices."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from layerstream import format_bytes, format_rate, format_seconds
from layerstream_compare import METRICS, Row, list_variants

TITLES: Mapping[str, str] = {
    "streamed": "Streamed",
    "resident": "In memory",
    "bnb-int8": "8-bit",
    "bnb-nf4": "4-bit NF4",
    "bnb-nf4-dq": "4-bit NF4, double",
    "bnb-fp4": "4-bit FP4",
    "bnb-fp4-dq": "4-bit FP4, double",
    "torchao-int8": "8-bit torchao",
    "autoround-int3": "3-bit",
    "autoround-int2": "2-bit",
    "default": "automatic",
    "eager": "eager (quadratic)",
    "sdpa": "SDPA",
    "sdpa-math": "SDPA math (quadratic)",
    "sdpa-flash": "SDPA flash (linear)",
    "sdpa-efficient": "SDPA efficient (linear)",
    "sdpa-cudnn": "SDPA cuDNN (linear)",
    "flash-attention-2": "flash-attn 2 (linear)",
    "flash-attention-3": "flash-attn 3 (linear)",
    "flash-attention-4": "flash-attn 4 (linear)",
    "flex": "flex",
    "hub-flash-attention-2": "flash-attn 2, Hub (linear)",
    "hub-flash-attention-3": "flash-attn 3, Hub (linear)",
    "hub-flash-attention-4": "flash-attn 4, Hub (linear)",
}
"""Short names of variants, for columns and legends."""

ABOUT: Mapping[str, str] = {variant.name: variant.title for variant in list_variants()}
"""Each variant described in one line."""

BY_KEY = {metric.key: metric for metric in METRICS}
"""All metrics by key."""

DASH = "–"


def title_of(variant: str) -> str:
    """Return a variant's short name."""
    return TITLES.get(variant, variant)


TIMED = ("load_s", "first_token_s", "inter_token_median_s", "tokens_per_s")
"""Metrics that other work on the machine disturbs."""


def figure(row: Row | None, key: str) -> str:
    """Return a metric's median as text, with "≈" if the machine was busy; a dash if it was not measured."""
    value = None if row is None else row.median_of(key)
    if row is None or value is None:
        return DASH
    return f"{'≈ ' if row.is_noisy and key in TIMED else ''}{BY_KEY[key].show(value)}"


def tip(text: str, about: str) -> str:
    """Return a small "?" that shows `text` to pointer, keyboard and screen-reader users alike.

    Args:
        text: the explanation.
        about: what it explains; read out by screen readers.
    """
    words = escape(text, quote=True)
    return (
        f'<button type="button" class="ls-q" aria-label="{escape(about, quote=True)}: {words}">'
        '<span aria-hidden="true">?</span>'
        f'<span class="ls-tip" aria-hidden="true">{words}</span></button>'
    )


def status_line(html: str) -> str:
    """Return the line above a view that says what is going on; screen readers announce its changes."""
    return f'<p class="ls-status" role="status">{html}</p>'


def notice(title: str, text: str, *, kind: str = "info") -> str:
    """Return a card that says what happened and what to do.

    Args:
        title: a few words.
        text: what to do about it.
        kind: `info` or `error`.
    """
    role = "alert" if kind == "error" else "status"
    return (
        f'<div class="ls-notice {kind}" role="{role}"><strong>{escape(title)}</strong>'
        f"<p>{escape(text)}</p></div>"
    )


def gigabytes(num_bytes: float) -> str:
    """Return bytes in decimal gigabytes, the unit of model cards: `"140 GB"`, `"0.27 GB"`."""
    value = num_bytes / 1e9
    return f"{value:.0f} GB" if value >= 100 else f"{value:.3g} GB"


def percent(part: float, whole: float) -> str:
    """Return a share as a CSS percentage between 0 and 100 %."""
    share = 0.0 if whole <= 0 else min(max(part / whole, 0.0), 1.0)
    return f"{share * 100:.2f}%"


__all__ = [
    "ABOUT",
    "BY_KEY",
    "DASH",
    "TITLES",
    "escape",
    "figure",
    "format_bytes",
    "format_rate",
    "format_seconds",
    "gigabytes",
    "notice",
    "percent",
    "status_line",
    "tip",
    "title_of",
]
