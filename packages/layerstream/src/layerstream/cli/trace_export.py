"""Draw spans: Perfetto's JSON, and a Gantt chart that needs only a browser.

It knows spans and colours, but no model, file or clock: times count from the first span. The chart makes no
outside request, follows the reader's light or dark scheme, and uses colours that colour-blind readers can
tell apart (Okabe and Ito's set); waits are also hatched.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..spec.sizes import format_bytes, format_rate, format_seconds
from ..spec.timeline import Activity, Span

_ORDER = (Activity.READ, Activity.COPY, Activity.WAIT, Activity.COMPUTE)
_MEANING = {
    Activity.READ: "disk to host memory",
    Activity.COPY: "host to device",
    Activity.WAIT: "the computation waits for weights",
    Activity.COMPUTE: "inside a block",
}
_MIN_WIDTH_PX = 0.4
_LEFT, _RIGHT, _TOP, _ROW, _GAP, _AXIS = 92, 18, 30, 22, 12, 34

_STYLE = """ :root{color-scheme:light dark}
.gantt{--ink:#1b1f24;--soft:#5b6470;--grid:#d9dee4;--band:#f3f5f7;--read:#0072b2;--copy:#cc79a7;--wait:#d55e00;--compute:#009e73}
@media (prefers-color-scheme:dark){
.gantt{--ink:#e8ebee;--soft:#9aa4b0;--grid:#39414b;--band:#1d2229;--read:#56b4e9;--copy:#e0a3c6;--wait:#f0883e;--compute:#2fbf94}}
.gantt text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--soft)} .gantt
.track{fill:var(--ink);font-weight:600} .gantt .band{fill:var(--band)} .gantt
.grid{stroke:var(--grid);stroke-width:1} .gantt .sweep{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
.gantt .read{fill:var(--read)}.gantt .copy{fill:var(--copy)}.gantt .compute{fill:var(--compute)} .gantt
.wait{fill:url(#hatch);stroke:var(--wait);stroke-width:.6}.gantt .thin{fill:var(--wait);stroke:none} .gantt
.hatch{stroke:var(--wait);stroke-width:2.2} .gantt .odd{opacity:.72} .gantt
rect.span:hover{opacity:1;stroke:var(--ink);stroke-width:1.4}
"""

_PAGE_STYLE = """ body{margin:0;padding:24px 28px;font:15px/1.5 system-ui,-apple-system,"Segoe
UI",sans-serif;background:#fff;color:#1b1f24} h1{font-size:20px;margin:0 0 2px}p{margin:0 0
18px;color:#5b6470;max-width:110ch} .scroll{overflow-x:auto;border:1px solid
#d9dee4;border-radius:8px;padding:8px 0} table{border-collapse:collapse;margin:20px
0;font-variant-numeric:tabular-nums} th,td{text-align:right;padding:4px 16px 4px 0;border-bottom:1px solid
#d9dee4} th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}
th{font-weight:600;color:#5b6470}
.key{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:8px;vertical-align:-1px}
.key.read{background:#0072b2}.key.copy{background:#cc79a7}.key.compute{background:#009e73}
.key.wait{background:repeating-linear-gradient(45deg,#d55e00 0 2px,transparent 2px 4px);outline:1px solid
#d55e00; outline-offset:-1px} @media (prefers-color-scheme:dark){
body{background:#14181d;color:#e8ebee}p,th{color:#9aa4b0}.scroll,th,td{border-color:#39414b}
.key.read{background:#56b4e9}.key.copy{background:#e0a3c6}.key.compute{background:#2fbf94}
.key.wait{background:repeating-linear-gradient(45deg,#f0883e 0 2px,transparent 2px
4px);outline-color:#f0883e}} @media
(max-width:640px){body{padding:14px}th:last-child,td:last-child{display:none}}
"""


def perfetto_json(spans: Iterable[Span], *, process_name: str = "layerstream") -> dict[str, Any]:
    """Return `spans` in Chrome's trace format, which ui.perfetto.dev and chrome://tracing load.

    Overlapping spans of one activity get separate tracks, because in this format the events of a track may
    only nest. Times are microseconds from the first span.
    """
    tracks = _tracks_of(spans)
    begin_s = min((span.start_s for track in tracks for row in track.rows for span in row), default=0.0)
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": process_name}}
    ]
    tid = 0
    for track in tracks:
        for index, row in enumerate(track.rows):
            tid += 1
            name = track.activity.value if len(track.rows) == 1 else f"{track.activity.value} {index + 1}"
            events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}})
            events.append(
                {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": tid, "args": {"sort_index": tid}}
            )
            events += [_complete_event(span, tid, begin_s) for span in row]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _complete_event(span: Span, tid: int, begin_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.unit,
        "cat": span.activity.value,
        "pid": 1,
        "tid": tid,
        "ts": round((span.start_s - begin_s) * 1e6, 3),
        "dur": round(max(0.0, span.duration_s) * 1e6, 3),
        "args": {
            "sweep": span.sweep,
            "unit_index": span.unit_index,
            "num_bytes": span.num_bytes,
            "replica": span.replica,
        },
    }


def gantt_svg(spans: Iterable[Span], *, width_px: int = 1180, label: str = "timeline") -> str:
    """Return `spans` as a standalone SVG: tracks for reads, copies, waits and computation over one time axis.

    Args:
        spans: what to draw; a track without spans is left out.
        width_px: the width of the drawing.
        label: the text for screen readers.
    """
    tracks = _tracks_of(spans)
    scale = _scale(tracks, width_px)
    height = _TOP + sum(len(track.rows) * _ROW + _GAP for track in tracks) + _AXIS
    body = [*_axis(scale, height), *_sweep_marks(tracks, scale, height)]
    y = _TOP
    for track in tracks:
        body += _draw_track(track, y, scale)
        y += len(track.rows) * _ROW + _GAP
    return "\n".join(
        [
            f'<svg class="gantt" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
            f'width="{width_px}" height="{height}" viewBox="0 0 {width_px} {height}">',
            f"<style>{_STYLE}</style>",
            '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)">'
            '<line class="hatch" x1="0" y1="0" x2="0" y2="5"/></pattern></defs>',
            *body,
            "</svg>",
        ]
    )


def gantt_html(spans: Iterable[Span], *, title: str, subtitle: str = "") -> str:
    """Return a standalone page: the Gantt chart, which scrolls sideways, and the totals, its legend."""
    spans = tuple(spans)
    # 3 pixels per span keep short spans visible; beyond 12,000 pixels browsers slow down
    width_px = min(12_000, max(1180, 3 * len(spans)))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
            f"<style>{_PAGE_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>",
            f'<div class="scroll" tabindex="0">{gantt_svg(spans, width_px=width_px, label=title)}</div>',
            _totals_table(spans),
            "<p>Point at a bar for its block, sweep, length and rate. Dashed lines mark the starts of sweeps."
            "</p></body></html>",
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Track:
    activity: Activity
    rows: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    begin_s: float
    px_per_s: float
    width_px: int
    total_s: float

    def x(self, time_s: float) -> float:
        return _LEFT + (time_s - self.begin_s) * self.px_per_s


def _tracks_of(spans: Iterable[Span]) -> tuple[_Track, ...]:
    by_activity: dict[Activity, list[Span]] = {}
    for span in spans:
        by_activity.setdefault(span.activity, []).append(span)
    return tuple(
        _Track(activity=kind, rows=_rows(by_activity[kind])) for kind in _ORDER if kind in by_activity
    )


def _rows(spans: Sequence[Span]) -> tuple[tuple[Span, ...], ...]:
    """Put overlapping spans into different rows, as few as possible; a span takes the row idle longest."""
    rows: list[list[Span]] = []
    ends: list[tuple[float, int]] = []
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        if ends and ends[0][0] <= span.start_s:
            _, row = heapq.heappop(ends)
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(span)
        heapq.heappush(ends, (span.end_s, row))
    return tuple(tuple(row) for row in rows)


def _scale(tracks: Sequence[_Track], width_px: int) -> _Scale:
    spans = [span for track in tracks for row in track.rows for span in row]
    begin_s = min((span.start_s for span in spans), default=0.0)
    total_s = max((span.end_s for span in spans), default=1.0) - begin_s or 1.0
    return _Scale(
        begin_s=begin_s, total_s=total_s, width_px=width_px, px_per_s=(width_px - _LEFT - _RIGHT) / total_s
    )


def _axis(scale: _Scale, height: int) -> list[str]:
    step_s = _round_step(scale.total_s * 110 / scale.width_px)
    lines = []
    for index in range(int(scale.total_s / step_s) + 1):
        x = scale.x(scale.begin_s + index * step_s)
        lines.append(
            f'<line class="grid" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - _AXIS + 4}"/>'
        )
        lines.append(
            f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{_tick(index * step_s, step_s)}</text>'
        )
    return lines


def _round_step(min_s: float) -> float:
    step_s = 1e-6
    while True:
        for factor in (1, 2, 5):
            if step_s * factor >= min_s:
                return step_s * factor
        step_s *= 10


def _tick(time_s: float, step_s: float) -> str:
    if time_s == 0:
        return "0"
    if step_s < 0.1 and time_s < 1:
        return f"{time_s * 1000:.3g} ms"
    decimals = 2 if step_s < 0.1 else 1 if step_s < 1 else 0
    return f"{time_s:.{decimals}f} s"


def _sweep_marks(tracks: Sequence[_Track], scale: _Scale, height: int) -> list[str]:
    starts: dict[int, float] = {}
    for track in tracks:
        if track.activity in (Activity.COMPUTE, Activity.WAIT):
            for row in track.rows:
                for span in row:
                    starts[span.sweep] = min(span.start_s, starts.get(span.sweep, span.start_s))
    lines, free_from = [], 0.0
    for sweep, start_s in sorted(starts.items()):
        x = scale.x(start_s)
        lines.append(
            f'<line class="sweep" x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - _AXIS + 4}"/>'
        )
        if x >= free_from:
            lines.append(f'<text x="{x + 4:.1f}" y="{_TOP - 12}">sweep {sweep}</text>')
            free_from = x + 62
    return lines


def _draw_track(track: _Track, top: int, scale: _Scale) -> list[str]:
    height = len(track.rows) * _ROW
    name = track.activity.value
    lines = [
        f'<text class="track" x="{_LEFT - 12}" y="{top + height / 2 + 4:.0f}" text-anchor="end">'
        f"{name}</text>",
    ]
    for index, row in enumerate(track.rows):
        y = top + index * _ROW
        lines.append(
            f'<rect class="band" x="{_LEFT}" y="{y + 1}" width="{scale.width_px - _LEFT - _RIGHT}" '
            f'height="{_ROW - 2}"/>'
        )
        for span in row:
            width = max(_MIN_WIDTH_PX, span.duration_s * scale.px_per_s)
            shade = " odd" if span.unit_index % 2 else ""
            # a border would make a wait of almost nothing look like a bar
            shade += " thin" if span.activity is Activity.WAIT and width < 2 else ""
            lines.append(
                f'<rect class="span {name}{shade}" x="{scale.x(span.start_s):.2f}" y="{y + 1}" '
                f'width="{width:.2f}" height="{_ROW - 2}" rx="1.5">'
                f"<title>{escape(_hover(span))}</title></rect>"
            )
    return lines


def _hover(span: Span) -> str:
    parts = [f"{span.activity.value} {span.unit}", f"sweep {span.sweep}", _precise(span.duration_s)]
    if span.num_bytes:
        parts.append(format_bytes(span.num_bytes))
        if span.duration_s > 0:
            parts.append(format_rate(span.num_bytes / span.duration_s))
    return " · ".join(parts)


def _precise(duration_s: float) -> str:
    return f"{duration_s * 1000:.2f} ms" if duration_s < 1 else format_seconds(duration_s)


def _totals_table(spans: Sequence[Span]) -> str:
    begin_s = min((span.start_s for span in spans), default=0.0)
    total_s = max((span.end_s for span in spans), default=0.0) - begin_s
    header = "".join(f"<th>{title}</th>" for title in ("", "spans", "busy", "share", "moved", ""))
    lines = [f"<table><thead><tr>{header}</tr></thead><tbody>"]
    for kind in _ORDER:
        own = [span for span in spans if span.activity is kind]
        if not own:
            continue
        busy_s = _covered_seconds(own)
        share = f"{100 * busy_s / total_s:.0f} %" if total_s else ""
        moved = sum(span.num_bytes for span in own)
        lines.append(
            f'<tr><td><span class="key {kind.value}"></span>{kind.value}</td>'
            f"<td>{len(own):,}</td><td>{format_seconds(busy_s)}</td><td>{share}</td>"
            f"<td>{format_bytes(moved) if moved else ''}</td><td>{_MEANING[kind]}</td></tr>"
        )
    return "\n".join([*lines, "</tbody></table>"])


def _covered_seconds(spans: Sequence[Span]) -> float:
    """Return the length of the union of `spans`: the time during which at least one was active."""
    covered_s, until_s = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_s):
        covered_s += max(0.0, span.end_s - max(span.start_s, until_s))
        until_s = max(until_s, span.end_s)
    return covered_s
