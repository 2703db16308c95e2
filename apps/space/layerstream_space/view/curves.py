"""Memory and time against prompt length, one curve per attention variant.

Both axes are logarithmic, so a power law is a straight line and its exponent is the slope.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerstream_compare import Measurement

from .elements import BY_KEY, escape, format_bytes, format_seconds, status_line, title_of

PANELS = (("prefill_extra_bytes", "Memory of the prompt"), ("first_token_s", "Time to the first token"))
WARM_TOKENS = 512
"""The warm-up reads this many tokens of a prompt. Shorter prompts find part of their memory already taken, so
their points lie too low, and no exponent is taken from them."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 470, 14, 232
_SHAPES = ("circle", "square", "triangle", "diamond", "cross")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A logarithmic scale that maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        whole = math.log(self.high / self.low) or 1.0
        return self.start + (self.end - self.start) * math.log(value / self.low) / whole


def curves_view(measurements: Sequence[Measurement], status: str = "", *, is_live: bool = False) -> str:
    """Return a panel for memory and one for time; they say what will appear if there is nothing to draw yet.

    Args:
        measurements: of any attention variants and lengths.
        status: HTML for the line above the panels.
        is_live: True while points are still being measured.
    """
    lines = _by_attention(measurements)
    if lines:
        panels = "".join(_panel(lines, key, heading) for key, heading in PANELS)
    else:
        panels = "".join(
            f'<div class="ls-card ls-hollow"><h3>{heading}</h3><div class="ls-no-curve">Each attention '
            "variant draws a curve here, "
            "with one point per prompt length.</div></div>"
            for _, heading in PANELS
        )
    head = status_line(f"<span>{status}</span>") + (_legend(lines) if lines else "")
    return (
        f'<section class="ls-curves{" live" if is_live else ""}">{head}'
        f'<div class="ls-plots">{panels}</div></section>'
    )


def _by_attention(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Return the successful measurements by attention variant, shortest prompt first."""
    lines: dict[str, list[Measurement]] = {}
    for each in sorted(measurements, key=lambda each: each.prompt_tokens):
        if each.status == "ok":
            lines.setdefault(each.case.attention, []).append(each)
    return dict(sorted(lines.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A measured growth, value ~ length^exponent, between two lengths in tokens."""

    exponent: float
    start: float
    end: float


def growth(points: Sequence[tuple[float, float]]) -> Growth | None:
    """Return how a curve grows, or None if there are too few points longer than `WARM_TOKENS`.

    It is taken between the longest prompt and the longest one of at most half its length.
    """
    good = [(length, value) for length, value in points if value > 0 and length > WARM_TOKENS]
    if len(good) < 2 or good[-1][0] < 2 * good[0][0]:
        return None
    last = good[-1]
    first = [point for point in good if point[0] * 2 <= last[0]][-1]
    exponent = math.log(last[1] / first[1]) / math.log(last[0] / first[0])
    return Growth(exponent=exponent, start=first[0], end=last[0])


def _points(line: Sequence[Measurement], key: str) -> list[tuple[float, float]]:
    found = [(float(each.prompt_tokens), BY_KEY[key].value(each) or 0.0) for each in line]
    return [(length, value) for length, value in found if value > 0]


def _legend(lines: Mapping[str, Sequence[Measurement]]) -> str:
    items = ""
    for number, (name, line) in enumerate(lines.items()):
        found = growth(_points(line, "prefill_extra_bytes"))
        text = "" if found is None else _growth_text(found)
        drawing = f'<path d="M0 6H24" class="c{number}"/>{_marker(12, 6, number)}'
        swatch = f'<svg viewBox="0 0 24 12" width="24" height="12" aria-hidden="true">{drawing}</svg>'
        items += f"<li>{swatch}<b>{escape(title_of(name))}</b><span>{text}</span></li>"
    return f'<ul class="ls-legend">{items}</ul>'


def _growth_text(found: Growth) -> str:
    return (
        f"measured here: memory grew as length<sup>{found.exponent:.1f}</sup> "
        f"from {found.start:,.0f} to {found.end:,.0f} tokens"
    )


def _panel(lines: Mapping[str, Sequence[Measurement]], key: str, heading: str) -> str:
    points = {name: _points(line, key) for name, line in lines.items()}
    every = [point for line in points.values() for point in line]
    head = f'<h3>{heading}</h3><p class="ls-note">{escape(BY_KEY[key].includes)}.</p>'
    if not every:
        note = '<p class="ls-note">This cannot be measured on this machine.</p>'
        return f'<div class="ls-card">{head}{note}</div>'
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_axis = Axis(low=min(xs) / 1.15, high=max(xs) * 1.15, start=_LEFT, end=_RIGHT)
    y_axis = Axis(low=min(ys) / 1.6, high=max(max(ys) * 1.6, min(ys) * 4), start=_BOTTOM, end=_TOP)
    show = format_bytes if key.endswith("bytes") else format_seconds
    parts = [_horizontal_grid(y_axis, key), _length_ticks(x_axis, sorted(set(xs)))]
    labels = []
    for number, (name, line) in enumerate(points.items()):
        title = title_of(name)
        path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" class="c{number}"/>')
        parts += [
            f"<g>{_marker(x_axis(x), y_axis(y), number)}<title>{escape(title)}, {x:.0f} tokens: "
            f"{show(y)}</title></g>"
            for x, y in line
        ]
        labels.append(f"{title} {', '.join(f'{x:.0f} tokens {show(y)}' for x, y in line)}")
    label = escape("; ".join(labels), quote=True)
    drawing = (
        f'<svg class="ls-curve" viewBox="0 0 480 268" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
    return f'<div class="ls-card">{head}{drawing}</div>'


def _horizontal_grid(y_axis: Axis, key: str) -> str:
    is_bytes = key.endswith("bytes")
    unit = 1024.0**2 if is_bytes else 1.0
    first, last = math.ceil(math.log2(y_axis.low / unit)), math.floor(math.log2(y_axis.high / unit))
    stride = max(1, round((last - first) / 4))
    parts = ""
    for exponent in range(first, last + 1, stride):
        value = unit * 2.0**exponent
        label = re.sub(r"\.0+ ", " ", format_bytes(value) if is_bytes else format_seconds(value))
        parts += f'<path d="M{_LEFT} {y_axis(value):.1f}H{_RIGHT}" class="grid"/>'
        parts += f'<text x="{_LEFT - 6}" y="{y_axis(value) + 4:.1f}" text-anchor="end">{label}</text>'
    return parts


def _length_ticks(x_axis: Axis, lengths: Sequence[float]) -> str:
    ticks = "".join(
        f'<text x="{x_axis(length):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{length:.0f}</text>'
        for length in lengths
    )
    return (
        f'{ticks}<text x="{_RIGHT}" y="{_BOTTOM + 30}" text-anchor="end" class="quiet">'
        "prompt tokens (both axes are logarithmic)</text>"
    )


def _marker(x: float, y: float, number: int) -> str:
    shape, size = _SHAPES[number % len(_SHAPES)], 4.5
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="m{number}"/>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.2), (1.2, 0.9), (-1.2, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "cross": ((-1.2, -0.4), (1.2, -0.4), (1.2, 0.4), (-1.2, 0.4)),
    }[shape]
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" class="m{number}"/>'
