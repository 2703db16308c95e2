"""The timeline of a streamed run: reads, copies, computing and waiting, a row each. SVG that stretches; words are HTML."""

from __future__ import annotations

from collections.abc import Sequence

from ..track import Bar, Track
from .plan import short_name
from .words import escape, format_bytes, format_seconds, tip

ROWS = {
    "read": "read from disk",
    "copy": "copied to the device",
    "compute": "computing",
    "wait": "waiting for weights",
}
_ABOUT = {
    "read": "Reads under way, from the disk into a slot or a staging buffer; several overlap.",
    "copy": "Copies from host memory to the device; none on a CPU, where the slot is the buffer.",
    "compute": "Inside a block's forward. Lighter and darker alternate from block to block.",
    "wait": "The computation had to wait because a block's weights were not there yet.",
}
_MOST_BARS = 700
_HEIGHT = 26


def watch_view(track: Track, texts: Sequence[str], phase: str, *, is_over: bool) -> str:
    """Return the live picture: text, figures, timeline, and where the computation is.

    Args:
        track: what was moved.
        texts: the new tokens' texts.
        phase: what the worker does.
        is_over: nothing more will come.
    """
    caret = "" if is_over or not texts else '<span class="ls-caret" aria-hidden="true"></span>'
    words = escape("".join(texts)) or f'<span class="ls-wait">{escape(phase)} …</span>'
    return (
        f'<section class="ls-watch"><div class="ls-text ls-answer" tabindex="0" aria-label="Answer">{words}{caret}</div>'
        f"{_figures(track, len(texts))}{timeline_view(track, is_over=is_over)}</section>"
    )


def _figures(track: Track, num_tokens: int) -> str:
    sweep = track.sweep_s()
    elapsed = track.end_s or 1.0
    rate = track.bytes_read / elapsed if track.bytes_read else 0.0
    waiting = track.seconds["wait"] / elapsed if track.end_s else 0.0
    pairs = (
        ("tokens", str(num_tokens) if num_tokens else "–"),
        ("each sweep", format_seconds(sweep) if sweep else "–"),
        ("read so far", format_bytes(track.bytes_read) if track.bytes_read else "–"),
        ("over the run", f"{rate / 1e9:.2f} GB/s" if rate else "–"),
        ("waiting", f"{waiting * 100:.0f} %" if track.end_s else "–"),
    )
    return (
        '<dl class="ls-figures ls-wide-figures">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
        + "</dl>"
    )


def timeline_view(track: Track, *, is_over: bool) -> str:
    """Return the last sweeps as a picture of four rows."""
    span = max(0.05, 2.2 * track.sweep_s() or 1.0)
    bars = track.window(span)[-_MOST_BARS:]
    start = max(0.0, track.end_s - span)
    shown = [name for name in ROWS if name != "copy" or track.seconds["copy"] > 0]
    rows = "".join(_row(name, [bar for bar in bars if bar.activity == name], start, span) for name in shown)
    heading = "The last sweeps" if is_over else "Now" if track.end_s else "Timeline"
    axis = (
        f"<span>{format_seconds(start)}</span><span>{format_seconds(start + span)}</span>"
        if track.end_s
        else "<span>&nbsp;</span>"
    )
    return (
        f'<div class="ls-card"><h3>{heading}</h3><div class="ls-timeline" role="img" aria-label="{_told(track)}">{rows}</div>'
        f'<div class="ls-axis" aria-hidden="true">{axis}</div></div>'
    )


def _row(name: str, bars: Sequence[Bar], start: float, span: float) -> str:
    rects = "".join(_rect(bar, start, span) for bar in bars)
    return (
        f'<div class="ls-row"><span>{ROWS[name]} {tip(_ABOUT[name], ROWS[name])}</span><svg class="{name}" viewBox="0 0 1000 '
        f'{_HEIGHT}" '
        f'preserveAspectRatio="none" aria-hidden="true">{rects}</svg></div>'
    )


def _rect(bar: Bar, start: float, span: float) -> str:
    left = max(0.0, (bar.start_s - start) / span * 1000)
    right = min(1000.0, (bar.end_s - start) / span * 1000)
    shade = "b" if bar.unit % 2 else "a"
    return f'<rect x="{left:.1f}" y="0" width="{max(right - left, 0.6):.1f}" height="{_HEIGHT}" class="{shade}"/>'


def _told(track: Track) -> str:
    if not track.end_s:
        return "Nothing has run yet"
    model = "" if track.plan is None else f"{short_name(str(track.plan['model_name']))}: "
    parts = [f"{ROWS[name]} {format_seconds(track.seconds[name])}" for name in ROWS if track.seconds[name]]
    return escape(f"{model}{', '.join(parts)} in {format_seconds(track.end_s)}", quote=True)
