"""Basic SVG: shapes as text, linear and logarithmic scales, ticks. It does not know what is drawn.

Colours are CSS classes (`s0` … `s5` for series, `label`, `muted`, ...) that the style sheet defines for light
and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
SERIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A mapping from values to pixels.

    Attributes:
        minimum: value at `start`.
        maximum: value at `end`.
        start: pixel of `minimum`.
        end: pixel of `maximum`.
        is_log: whether it is logarithmic; `minimum` must be positive then.
        ticks: values to mark.
    """

    minimum: float
    maximum: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`, clamped to the scale's ends."""
        low, high = self.minimum, self.maximum
        clamped = min(max(value, low), high)
        if self.is_log:
            low, high, clamped = math.log(low), math.log(high), math.log(clamped)
        return self.start + (self.end - self.start) * (clamped - low) / (high - low or 1)


def linear(
    values: Sequence[float], start: float, end: float, *, unit: float = 1, num_ticks: int = 4
) -> Scale:
    """Return a scale from 0 to just above the largest value; ticks are 1, 2 or 5 times a power of ten."""
    largest = max([value for value in values if math.isfinite(value)], default=0) or unit
    rough = largest / unit / num_ticks
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999) * unit
    ticks = tuple(step * index for index in range(math.floor(largest / step) + 1))
    return Scale(minimum=0, maximum=largest * 1.02, start=start, end=end, is_log=False, ticks=ticks)


def logarithmic(
    values: Sequence[float], start: float, end: float, *, base: float = 10, unit: float = 1
) -> Scale:
    """Return a logarithmic scale over the positive finite values, ending at whole powers of `base`."""
    positive = [value / unit for value in values if value > 0 and math.isfinite(value)] or [1.0]
    first = math.floor(math.log(min(positive), base) + 1e-9)
    last = max(math.ceil(math.log(max(positive), base) - 1e-9), first + 1)
    stride = max(1, (last - first + 7) // 8)
    ticks = tuple(base**power * unit for power in range(first, last + 1, stride))
    return Scale(
        minimum=base**first * unit, maximum=base**last * unit, start=start, end=end, is_log=True, ticks=ticks
    )


def picture(title: str, height: float, parts: Sequence[str]) -> str:
    """Return a complete SVG element with an accessible name."""
    size = f'viewBox="0 0 {WIDTH} {_n(height)}"'
    name = f'role="img" aria-label="{escape(title)}"'
    head = f'<svg {size} {name} xmlns="http://www.w3.org/2000/svg">'
    return "\n".join([head, *parts, "</svg>"])


def standalone(drawing: str, style: str) -> str:
    """Return a drawing as a standalone file, with its style sheet and a background."""
    head, _, rest = drawing.partition(">")
    background = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f"{head}>\n<style>{style}</style>\n{background}{rest}\n"


def text(
    x: float, y: float, content: str, *, kind: str = "label", anchor: str = "start", tip: str = ""
) -> str:
    """Return a text element; `tip` is its tooltip."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}" text-anchor="{anchor}">{title}{escape(content)}</text>'
    )


def rectangle(x: float, y: float, width: float, height: float, *, kind: str, tip: str) -> str:
    """Return a rectangle with a tooltip; nothing if its width is 0."""
    if width <= 0:
        return ""
    geometry = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0.5))}" height="{_n(height)}"'
    return f'<rect {geometry} class="{kind}"><title>{escape(tip)}</title></rect>'


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str) -> str:
    """Return a straight line."""
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def path(points: Sequence[tuple[float, float]], *, kind: str) -> str:
    """Return a line through `points`."""
    return f'<polyline points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}" class="{kind}"/>'


def marker(x: float, y: float, number: int, *, kind: str, tip: str = "") -> str:
    """Return a marker. Its shape depends on the series, so that series differ without colour too."""
    shape = _SHAPES[number % len(_SHAPES)]
    title = f"<title>{escape(tip)}</title>" if tip else ""
    points = " ".join(f"{_n(x + dx * 5)},{_n(y + dy * 5)}" for dx, dy in shape)
    body = f'<polygon points="{points}"' if shape else f'<circle cx="{_n(x)}" cy="{_n(y)}" r="4.5"'
    return f'{body} class="{kind}">{title}</{"polygon" if shape else "circle"}>'


def legend(x: float, y: float, names: Sequence[tuple[str, Callable[[float, float], str]]]) -> list[str]:
    """Return a legend: each name after its marker, wrapped at the edge of the picture."""
    parts, left = [], x
    for name, mark in names:
        width = 28 + 7 * len(name)
        if left + width > WIDTH and left > x:
            left, y = x, y + 18
        parts += [mark(left + 5, y - 4), text(left + 15, y, name)]
        left += width
    return parts


def shortened(label: str, length: int) -> str:
    """Return `label`, cut to `length` characters with an ellipsis if it is longer."""
    return label if len(label) <= length else label[: length - 1] + "…"


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.1), (1.1, 0.8), (-1.1, 0.8)),
    ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    ((-1.1, -0.8), (1.1, -0.8), (0, 1.1)),
    ((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4), (0.4, 1.1), (-0.4, 1.1),
     (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)),
)  # fmt: skip
