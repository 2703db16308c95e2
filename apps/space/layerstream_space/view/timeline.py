"""The timeline of a streamed run: reads, copies, computing and waiting, a row each. SVG that stretches; words are HTML."""

from __future__ import annotations

from collections.abc import Sequence

from ..timeline_state import Span, TimelineState
from .elements import escape, format_bytes, format_seconds, tip
from .plan import short_name

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


def watch_view(timeline: TimelineState, texts: Sequence[str], phase: str, *, is_over: bool) -> str:
    """Return the live picture: text, figures, timeline, and where the computation is.

    Args:
        timeline: what was moved.
        texts: the new tokens' texts.
        phase: what the worker does.
        is_over: nothing more will come.
    """
    caret = "" if is_over or not texts else '<span class="ls-caret" aria-hidden="true"></span>'
    words = escape("".join(texts)) or f'<span class="ls-wait">{escape(phase)} …</span>'
    return (
        f'<section class="ls-watch"><div class="ls-text ls-answer" tabindex="0" aria-label="Answer">{words}{caret}</div>'
        f"{_figures(timeline, len(texts))}{timeline_view(timeline, is_over=is_over)}</section>"
    )


def _figures(timeline: TimelineState, num_tokens: int) -> str:
    sweep = timeline.sweep_s()
    elapsed = timeline.end_s or 1.0
    rate = timeline.bytes_read / elapsed if timeline.bytes_read else 0.0
    waiting = timeline.seconds["wait"] / elapsed if timeline.end_s else 0.0
    pairs = (
        ("tokens", str(num_tokens) if num_tokens else "–"),
        ("each sweep", format_seconds(sweep) if sweep else "–"),
        ("read so far", format_bytes(timeline.bytes_read) if timeline.bytes_read else "–"),
        ("over the run", f"{rate / 1e9:.2f} GB/s" if rate else "–"),
        ("waiting", f"{waiting * 100:.0f} %" if timeline.end_s else "–"),
    )
    return (
        '<dl class="ls-figures ls-wide-figures">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
        + "</dl>"
    )


def timeline_view(timeline: TimelineState, *, is_over: bool) -> str:
    """Return the last sweeps as a picture of four rows."""
    span = max(0.05, 2.2 * timeline.sweep_s() or 1.0)
    bars = timeline.window(span)[-_MOST_BARS:]
    start = max(0.0, timeline.end_s - span)
    shown = [name for name in ROWS if name != "copy" or timeline.seconds["copy"] > 0]
    rows = "".join(_row(name, [bar for bar in bars if bar.activity == name], start, span) for name in shown)
    heading = "The last sweeps" if is_over else "Now" if timeline.end_s else "Timeline"
    axis = (
        f"<span>{format_seconds(start)}</span><span>{format_seconds(start + span)}</span>"
        if timeline.end_s
        else "<span>&nbsp;</span>"
    )
    return (
        f'<div class="ls-card"><h3>{heading}</h3><div class="ls-timeline" role="img" aria-label="{_told(timeline)}">{rows}</div>'
        f'<div class="ls-axis" aria-hidden="true">{axis}</div></div>'
    )


def _row(name: str, bars: Sequence[Span], start: float, span: float) -> str:
    rects = "".join(_rect(bar, start, span) for bar in bars)
    return (
        f'<div class="ls-track"><span>{ROWS[name]} {tip(_ABOUT[name], ROWS[name])}</span><svg class="{name}" viewBox="0 0 1000 '
        f'{_HEIGHT}" '
        f'preserveAspectRatio="none" aria-hidden="true">{rects}</svg></div>'
    )


def _rect(bar: Span, start: float, span: float) -> str:
    left = max(0.0, (bar.start_s - start) / span * 1000)
    right = min(1000.0, (bar.end_s - start) / span * 1000)
    shade = "b" if bar.unit % 2 else "a"
    return f'<rect x="{left:.1f}" y="0" width="{max(right - left, 0.6):.1f}" height="{_HEIGHT}" class="{shade}"/>'


def _told(timeline: TimelineState) -> str:
    if not timeline.end_s:
        return "Nothing has run yet"
    model = "" if timeline.plan is None else f"{short_name(str(timeline.plan['model_name']))}: "
    parts = [
        f"{ROWS[name]} {format_seconds(timeline.seconds[name])}" for name in ROWS if timeline.seconds[name]
    ]
    return escape(f"{model}{', '.join(parts)} in {format_seconds(timeline.end_s)}", quote=True)
