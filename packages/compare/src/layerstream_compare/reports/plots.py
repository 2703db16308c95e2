"""Draw the report's plots as inline SVG: memory, latency, divergence, and cost against prompt length.

A plot without data is an empty string.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from layerstream import format_bytes, format_seconds

from ..divergence import REFERENCE_FACT
from . import svg
from .metrics import BY_KEY, TEXTS, Row, agreement_on
from .number_format import format_nats

_LABEL_WIDTH = 250
_LABEL_LENGTH = 38
_MIB = 1024.0**2
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def memory_plot(rows: Sequence[Row], *, memory: str = "") -> str:
    """Return stacked bars of held and working memory; on a CPU also of mapped memory and the load spike.

    On an accelerator most of the last two are files: its libraries, and the checkpoint while it is copied.

    Args:
        rows: the cases.
        memory: `device` or `host` for one of an accelerator's two memories; empty on a CPU, which has one.
    """
    kinds = _MEMORY_KINDS[memory]
    shown = [row for row in rows if next(iter(kinds)) in row.values]
    if not shown:
        return ""
    ends = [_memory_end(row, kinds) for row in shown]
    scale = svg.linear(
        ends, _LABEL_WIDTH, svg.WIDTH - 120, unit=_MIB if max(ends) < 1000 * _MIB else 1024 * _MIB
    )
    top, step = 56, 34
    bottom = top + step * len(shown)
    parts = _swatches(kinds) + _vertical_grid(scale, top - 8, bottom, _bytes_tick)
    for index, row in enumerate(shown):
        parts += _memory_bar(row, kinds, scale, top + step * index)
    title = f"{memory.capitalize()} memory" if memory else "Memory"
    return svg.picture(f"{title} of each variant", bottom + 24, parts)


def _memory_end(row: Row, kinds: Mapping[str, str]) -> float:
    """Return where a row's bars end."""
    if "load_spike_bytes" not in kinds:
        return sum(_value(row, key) for key in kinds)
    return max(
        _value(row, "peak_over_baseline_bytes"), _value(row, "held_bytes") + _value(row, "load_spike_bytes")
    )


def _memory_bar(row: Row, kinds: Mapping[str, str], scale: svg.Scale, y: float) -> list[str]:
    parts, end = [_row_label(row, y + 13)], 0.0
    held_key, *_ = kinds
    for key, kind in kinds.items():
        tip = f"{row.label}: {BY_KEY[key].title} {row.text_of(BY_KEY[key])}. {BY_KEY[key].includes}"
        if key == "load_spike_bytes":
            # on top of held, but over before any working memory is used
            held = _value(row, held_key)
            parts.append(
                svg.rectangle(
                    scale(held), y + 18, scale(held + _value(row, key)) - scale(held), 5, kind=kind, tip=tip
                )
            )
            continue
        begin, end = end, end + _value(row, key)
        parts.append(svg.rectangle(scale(begin), y + 2, scale(end) - scale(begin), 14, kind=kind, tip=tip))
    held_text = f"{format_bytes(_value(row, held_key))} held"
    return [
        *parts,
        svg.text(svg.WIDTH - 112, y + 13, held_text, kind="value", tip=BY_KEY[held_key].includes),
    ]


_MEMORY_KINDS = {
    "": {"held_bytes": "s0", "working_bytes": "s1", "mapped_bytes": "faint", "load_spike_bytes": "s3"},
    "device": {"device_held_bytes": "s0", "device_working_bytes": "s1"},
    "host": {"host_held_bytes": "s0", "host_working_bytes": "s1"},
}
"""Metrics of a memory plot, in drawing order and what is held first, with the CSS class of their colour."""


def latency_plot(rows: Sequence[Row]) -> str:
    """Return bars of the time to the first token and between tokens, the latter with a whisker at p95."""
    shown = [row for row in rows if "first_token_s" in row.values]
    if not shown:
        return ""
    top, step = 34, 26
    bottom = top + step * len(shown)
    middle = (_LABEL_WIDTH + svg.WIDTH) / 2
    parts = [_row_label(row, top + step * index + 14) for index, row in enumerate(shown)]
    parts += _time_bars(shown, ("first_token_s", "", 0), (_LABEL_WIDTH, middle - 74), (top, step, bottom))
    parts += _time_bars(
        shown,
        ("inter_token_median_s", "inter_token_p95_s", 1),
        (middle + 16, svg.WIDTH - 66),
        (top, step, bottom),
    )
    return svg.picture("Latency of each variant", bottom + 24, parts)


def _time_bars(
    rows: Sequence[Row],
    series: tuple[str, str, int],
    x_range: tuple[float, float],
    layout: tuple[float, float, float],
) -> list[str]:
    """Return one panel of the latency plot.

    Args:
        rows: the cases.
        series: keys of the bars' and whiskers' metrics (the latter may be empty), and the colour's number.
        x_range: left and right edge.
        layout: top, height of a row, bottom.
    """
    key, whisker, color = series
    top, step, bottom = layout
    metric = BY_KEY[key]
    ends = [_value(row, name) for row in rows for name in (key, whisker) if name]
    scale = svg.linear(ends, *x_range, unit=1 if max(ends) >= 1 else 0.001, num_ticks=3)
    parts = [
        svg.text(x_range[0], 14, metric.title + (", median and p95" if whisker else ""), tip=metric.includes)
    ]
    parts += _vertical_grid(scale, top - 8, bottom, _seconds_tick)
    for index, row in enumerate(rows):
        y, value, end = top + step * index, _value(row, key), _value(row, whisker or key)
        tip = f"{row.label}: {metric.title} {row.text_of(metric)}. {metric.includes}"
        if whisker:
            tip += f". {BY_KEY[whisker].title} {row.text_of(BY_KEY[whisker])}"
        parts.append(svg.rectangle(scale(0), y + 4, scale(value) - scale(0), 14, kind=f"s{color}", tip=tip))
        if end > value:
            parts.append(svg.line(scale(value), y + 11, scale(end), y + 11, kind="whisker"))
            parts.append(svg.line(scale(end), y + 7, scale(end), y + 15, kind="whisker"))
        parts.append(
            svg.text(scale(max(value, end)) + 5, y + 15, format_seconds(value), kind="value", tip=tip)
        )
    return parts


def divergence_plot(rows: Sequence[Row]) -> str:
    """Return a plot of KL(reference ‖ variant) of each variant on a logarithmic axis.

    A marker shows the mean, a line reaches to the maximum. Zero has its own place left of the axis.
    """
    shown = [row for row in rows if row.shown.agreements]
    if not shown:
        return ""
    agreements = [agreement for row in shown for agreement in row.shown.agreements]
    scale = svg.logarithmic(
        [value for agreement in agreements for value in (agreement.kl_mean, agreement.kl_max)],
        _LABEL_WIDTH + 110,
        svg.WIDTH - 70,
    )
    top, step = 56, 30
    bottom = top + step * len(shown)
    zero = _LABEL_WIDTH + 20
    names = [
        (f"{TEXTS[text]} ({text}): mean, line to the maximum", number) for number, text in enumerate(TEXTS)
    ]
    parts = _marks(names) + _vertical_grid(scale, top - 8, bottom, _power_tick)
    parts += [
        svg.line(zero, top - 8, zero, bottom, kind="grid"),
        svg.text(zero, bottom + 16, "0", kind="muted", anchor="middle"),
    ]
    parts += _noise_floor(shown, scale, top - 8, bottom)
    for index, row in enumerate(shown):
        y = top + step * index
        parts.append(_row_label(row, y + 15))
        for number, text in enumerate(TEXTS):
            parts += _kl_mark(row, text, number, scale, (zero, y + 7 + 9 * number))
    parts.append(svg.text(svg.WIDTH, bottom + 16, "nats", kind="muted", anchor="end"))
    return svg.picture("Divergence of each variant from the reference", bottom + 24, parts)


def _noise_floor(rows: Sequence[Row], scale: svg.Scale, top: float, bottom: float) -> list[str]:
    """Mark how much the original weights differ when only the attention kernel changes."""
    means = [
        agreement.kl_mean
        for row in rows
        if row.is_noise_floor
        for agreement in row.shown.agreements
        if 0 < agreement.kl_mean < math.inf
    ]
    if not means:
        return []
    x = scale(max(means))
    tip = f"{format_nats(max(means))} nats: the original weights, other attention kernel. Less is rounding"
    return [
        svg.line(x, top, x, bottom, kind="floor"),
        svg.text(x + 5, top + 4, "noise floor", kind="muted", tip=tip),
    ]


def _kl_mark(row: Row, text: str, number: int, scale: svg.Scale, at: tuple[float, float]) -> list[str]:
    agreement = agreement_on(row.shown, text)
    if agreement is None or math.isnan(agreement.kl_mean):
        return []
    zero, y = at
    tip = (
        f"{row.label}, {TEXTS[text]}: KL mean {format_nats(agreement.kl_mean)}, "
        f"p99 {format_nats(agreement.kl_p99)}, max {format_nats(agreement.kl_max)} nats "
        f"over {agreement.positions} positions"
    )
    x = scale(agreement.kl_mean) if agreement.kl_mean > 0 else zero
    parts = []
    if agreement.kl_max > 0:
        parts.append(svg.line(x, y, scale(agreement.kl_max), y, kind=f"line s{number}"))
    parts.append(svg.marker(x, y, number, kind=f"s{number}", tip=tip))
    if number == 0:
        exact = " bit-exact" if row.is_bit_exact else ""
        right = max([x, *(scale(other.kl_max) for other in row.shown.agreements if other.kl_max > 0)])
        parts.append(
            svg.text(right + 9, y + 8, format_nats(agreement.kl_mean) + exact, kind="value", tip=tip)
        )
    return parts


def length_plots(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return name and plot of each weights variant with several prompt lengths; one line per attention."""
    good = [row for row in rows if row.shown.status == "ok" and row.shown.case.prompt_tokens]
    drawings = []
    for variant in dict.fromkeys(row.shown.case.variant for row in good):
        lines = _lines_by_attention([row for row in good if row.shown.case.variant == variant])
        if any(len(line) > 1 for line in lines.values()):
            drawings.append((variant, _length_plot(variant, lines)))
    return drawings


def _lines_by_attention(rows: Sequence[Row]) -> dict[str, list[Row]]:
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.shown.prompt_tokens):
        lines.setdefault(row.shown.case.attention, []).append(row)
    return lines


def _length_plot(variant: str, lines: dict[str, list[Row]]) -> str:
    names = [(name, number % svg.SERIES) for number, name in enumerate(lines)]
    half = svg.WIDTH / 2
    parts = _marks(names)
    parts += _length_panel(lines, "prefill_extra_bytes", (66, half - 26))
    parts += _length_panel(lines, "first_token_s", (half + 62, svg.WIDTH - 26))
    return svg.picture(f"Memory and time against prompt length, {variant}", 352, parts)


def _length_panel(lines: dict[str, list[Row]], key: str, x_range: tuple[float, float]) -> list[str]:
    metric = BY_KEY[key]
    measured = [[row for row in line if _value(row, key) > 0] for line in lines.values()]
    rows = [row for line in measured for row in line]
    if not rows:
        return [svg.text(x_range[0], 60, f"{metric.title}: not measured", kind="muted")]
    x_scale = _length_scale(rows, x_range)
    y_scale = _amount_scale(rows, key)
    parts = [svg.text(x_range[0], 60, f"{metric.title} against prompt tokens", tip=metric.includes)]
    parts += _length_axes(x_scale, y_scale, _bytes_tick if key.endswith("_bytes") else _seconds_tick)
    for number, line in enumerate(measured):
        parts += _length_line(line, key, number, (x_scale, y_scale))
    return parts


def _length_scale(rows: Sequence[Row], x_range: tuple[float, float]) -> svg.Scale:
    lengths = sorted({row.shown.prompt_tokens for row in rows})
    return svg.Scale(
        minimum=lengths[0] / 1.1,
        maximum=lengths[-1] * 1.1,
        start=x_range[0],
        end=x_range[1],
        is_log=True,
        ticks=tuple(lengths),
    )


def _amount_scale(rows: Sequence[Row], key: str) -> svg.Scale:
    bottom, top = 312, 78
    base, unit = (4, _MIB) if key.endswith("_bytes") else (10, 1)
    return svg.logarithmic([_value(row, key) for row in rows], bottom, top, base=base, unit=unit)


def _length_axes(x_scale: svg.Scale, y_scale: svg.Scale, show: Callable[[float], str]) -> list[str]:
    left, right, bottom = x_scale.start, x_scale.end, y_scale.start
    parts = []
    for tick in y_scale.ticks:
        parts.append(svg.line(left, y_scale(tick), right, y_scale(tick), kind="grid"))
        parts.append(svg.text(left - 6, y_scale(tick) + 4, show(tick), kind="muted", anchor="end"))
    for tick in _apart(x_scale, 44):
        parts.append(svg.text(x_scale(tick), bottom + 17, f"{tick:.0f}", kind="muted", anchor="middle"))
    return parts


def _length_line(
    rows: Sequence[Row], key: str, number: int, scales: tuple[svg.Scale, svg.Scale]
) -> list[str]:
    metric, (x_scale, y_scale) = BY_KEY[key], scales
    points = [(x_scale(row.shown.prompt_tokens), y_scale(_value(row, key))) for row in rows]
    parts = [svg.path(points, kind=f"line s{number % svg.SERIES}")]
    for row, (x, y) in zip(rows, points, strict=True):
        figure = f"{metric.title} {row.text_of(metric)} at {row.shown.prompt_tokens} prompt tokens"
        tip = f"{row.label}: {figure}. {metric.includes}"
        parts.append(svg.marker(x, y, number, kind=f"s{number % svg.SERIES}", tip=tip))
    return parts


def _bytes_tick(value: float) -> str:
    return f"{value / _MIB / 1024:.3g} GiB" if value >= 1000 * _MIB else f"{value / _MIB:.3g} MiB"


def _seconds_tick(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _power_tick(value: float) -> str:
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPT)


def _apart(scale: svg.Scale, pixels: float) -> list[float]:
    chosen: list[float] = []
    for tick in scale.ticks:
        if not chosen or scale(tick) - scale(chosen[-1]) >= pixels:
            chosen.append(tick)
    return chosen


def _value(row: Row, key: str) -> float:
    value = row.median_of(key)
    return value if value is not None and math.isfinite(value) else 0.0


def _row_label(row: Row, y: float) -> str:
    reference = row.shown.facts.get(REFERENCE_FACT)
    tip = row.label if reference is None else f"{row.label}, compared with {reference}"
    return svg.text(0, y, svg.shortened(row.label, _LABEL_LENGTH), tip=tip)


def _vertical_grid(scale: svg.Scale, top: float, bottom: float, show: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in scale.ticks:
        parts.append(svg.line(scale(tick), top, scale(tick), bottom, kind="grid"))
    for tick in _apart(scale, 52):
        parts.append(
            svg.text(
                scale(tick), bottom + 16, "0" if tick == 0 else show(tick), kind="muted", anchor="middle"
            )
        )
    return parts


def _swatches(kinds: Mapping[str, str]) -> list[str]:
    marks = [
        (BY_KEY[key].title, lambda x, y, kind=kind: svg.rectangle(x - 5, y - 5, 10, 10, kind=kind, tip=""))
        for key, kind in kinds.items()
    ]
    return svg.legend(0, 16, marks)


def _marks(names: Sequence[tuple[str, int]]) -> list[str]:
    marks = [
        (name, lambda x, y, number=number: svg.marker(x, y, number, kind=f"s{number}"))
        for name, number in names
    ]
    return svg.legend(0, 16, marks)
