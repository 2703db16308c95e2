"""The timeline of a streamed run: one track each for reads, copies, computation and waiting.

The drawing is an SVG that stretches to any width; its text is HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerstream import SpeculationReport

from ..timeline_state import Span, TimelineState
from .draft import draft_view
from .elements import DASH, escape, format_bytes, format_rate, format_seconds
from .plan import short_name

TRACKS = {
    "read": "reading from disk",
    "copy": "copying to the device",
    "compute": "computing",
    "wait": "waiting for weights",
}
_MAX_SPANS = 700
_HEIGHT = 26


def watch_view(
    timeline: TimelineState,
    texts: Sequence[str],
    status: str,
    *,
    is_over: bool,
    bar: str = "",
    report: SpeculationReport | None = None,
) -> str:
    """Return the live view: the answer, the figures, what a draft did, and the timeline.

    Args:
        timeline: what the run has done so far.
        texts: texts of the new tokens.
        status: shown in place of the answer until there are tokens.
        is_over: True once nothing more will come.
        bar: HTML for how far a running case has come; empty if none runs.
        report: what a draft did in the whole run; None without a draft, and before the end.
    """
    caret = "" if is_over or not texts else '<span class="ls-caret" aria-hidden="true"></span>'
    words = escape("".join(texts)) or f'<span class="ls-wait">{escape(status)}</span>'
    live = " live" if bar else ""
    return (
        f'<section class="ls-watch{live}">{bar}<div class="ls-text ls-answer" tabindex="0" '
        f'aria-label="Answer">{words}{caret}</div>'
        f"{_figures(timeline, len(texts))}{draft_view(timeline, report)}"
        f"{timeline_view(timeline, is_over=is_over)}</section>"
    )


def _figures(timeline: TimelineState, num_tokens: int) -> str:
    sweep_s, elapsed_s = timeline.sweep_s(), timeline.end_s
    pairs = (
        ("tokens", str(num_tokens) if num_tokens else DASH),
        ("time per sweep", format_seconds(sweep_s) if sweep_s else DASH),
        ("read so far", format_bytes(timeline.bytes_read) if timeline.bytes_read else DASH),
        (
            "average read rate",
            format_rate(timeline.bytes_read / elapsed_s) if timeline.bytes_read and elapsed_s else DASH,
        ),
        ("time waiting", f"{timeline.seconds['wait'] / elapsed_s * 100:.0f} %" if elapsed_s else DASH),
    )
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="ls-figures ls-wide-figures">{rows}</dl>'


def timeline_view(timeline: TimelineState, *, is_over: bool) -> str:
    """Return the last sweeps as tracks."""
    width_s = max(0.05, 2.2 * timeline.sweep_s() or 1.0)
    spans = timeline.latest(width_s)[-_MAX_SPANS:]
    start_s = max(0.0, timeline.end_s - width_s)
    shown = [name for name in TRACKS if name != "copy" or timeline.seconds["copy"] > 0]
    tracks = "".join(
        _track(name, [span for span in spans if span.activity == name], start_s, width_s) for name in shown
    )
    heading, axis = "Timeline", "<span>&nbsp;</span>"
    if timeline.end_s:
        heading = "The last sweeps" if is_over else "Now"
        axis = f"<span>{format_seconds(start_s)}</span><span>{format_seconds(start_s + width_s)}</span>"
    return (
        f'<div class="ls-card"><h3>{heading}</h3>'
        f'<div class="ls-timeline" role="img" aria-label="{_label(timeline)}">{tracks}</div>'
        f'<div class="ls-axis" aria-hidden="true">{axis}</div></div>'
    )


def _track(name: str, spans: Sequence[Span], start_s: float, width_s: float) -> str:
    rects = "".join(_rect(span, start_s, width_s) for span in spans)
    return (
        f'<div class="ls-track"><span>{TRACKS[name]}</span>'
        f'<svg class="{name}" viewBox="0 0 1000 {_HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true">{rects}</svg></div>'
    )


def _rect(span: Span, start_s: float, width_s: float) -> str:
    left = max(0.0, (span.start_s - start_s) / width_s * 1000)
    right = min(1000.0, (span.end_s - start_s) / width_s * 1000)
    shade = "b" if span.unit % 2 else "a"
    width = max(right - left, 0.6)
    return f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{_HEIGHT}" class="{shade}"/>'


def _label(timeline: TimelineState) -> str:
    if not timeline.end_s:
        return "Nothing has run yet"
    model = "" if timeline.plan is None else f"{short_name(timeline.plan.model_name)}: "
    parts = [
        f"{TRACKS[name]} {format_seconds(timeline.seconds[name])}"
        for name in TRACKS
        if timeline.seconds[name]
    ]
    return escape(f"{model}{', '.join(parts)} in {format_seconds(timeline.end_s)}", quote=True)
