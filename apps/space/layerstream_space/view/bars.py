"""Memory and latency of the columns as bars. They are HTML, so they fit any width, even a phone's."""

from __future__ import annotations

from collections.abc import Sequence

from layerstream_compare import Measurement

from .elements import BY_KEY, escape, format_bytes, format_seconds, percent, tip, title_of

_PARTS = (
    ("held_bytes", "weights", "held"),
    ("working_bytes", "working memory", "working"),
    ("mapped_bytes", "mapped files", "mapped"),
    ("load_spike_bytes", "loading spike", "spike"),
)
"""The parts of a memory bar: the metric, its name in the legend, its CSS class."""

_BUDGET_TIP = (
    "What the streamed model may use for weights, KV cache and activations. The bars show the whole "
    "process, which also holds a tokenizer and Python's own objects. Mapped files do not count towards the "
    "budget."
)
_EMPTY = (
    '<section class="ls-plots"><div class="ls-card ls-hollow"><h3>Memory</h3><p>Bars appear when the first '
    'column is done: weights, working memory, and the spike while loading.</p></div><div class="ls-card '
    'ls-hollow"><h3>Latency</h3>'
    "<p>Time to the first token, and time between tokens.</p></div></section>"
)


def plots_view(measurements: Sequence[Measurement]) -> str:
    """Return memory and latency plots of the successful measurements; a note if there are none yet."""
    good = [
        each
        for each in measurements
        if each.status == "ok" and each.memory is not None and each.timing is not None
    ]
    if not good:
        return _EMPTY
    return f'<section class="ls-plots" aria-label="Plots">{_memory(good)}{_latency(good)}</section>'


def _value(measurement: Measurement, key: str) -> float:
    return BY_KEY[key].value(measurement) or 0.0


def _memory(good: Sequence[Measurement]) -> str:
    budgets = [int(each.facts["budget_bytes"]) for each in good if "budget_bytes" in each.facts]
    peaks = [
        max(
            _value(each, "peak_over_baseline_bytes"),
            _value(each, "held_bytes") + _value(each, "load_spike_bytes"),
        )
        for each in good
    ]
    full_width = max([*peaks, *budgets]) * 1.04
    rows = "".join(_memory_row(each, full_width) for each in good)
    line = ""
    legend = "".join(
        f'<li><i class="{kind}"></i>{name} {tip(BY_KEY[key].includes, name)}</li>'
        for key, name, kind in _PARTS
    )
    if budgets:
        line = (
            f'<div class="ls-budget" style="--at:{percent(budgets[0], full_width)}">'
            f"<span>budget {format_bytes(budgets[0])}</span></div>"
        )
        legend += f'<li><i class="line"></i>budget of the streamed model {tip(_BUDGET_TIP, "budget")}</li>'
    return (
        f'<div class="ls-card ls-memory"><h3>Memory</h3><ul class="ls-legend">{legend}</ul>'
        f'<div class="ls-bars {"has-budget" if budgets else ""}">{rows}<div '
        f'class="ls-over">{line}</div></div></div>'
    )


def _memory_row(measurement: Measurement, full_width: float) -> str:
    held, working, mapped, spike = (_value(measurement, key) for key, _, _ in _PARTS)
    title = title_of(measurement.case.variant)
    parts = zip((held, working, mapped, spike), (name for _, name, _ in _PARTS), strict=True)
    label = escape(
        f"{title}: {', '.join(f'{format_bytes(size)} {name}' for size, name in parts)}", quote=True
    )
    meter = (
        f'<i class="held" style="width:{percent(held, full_width)}"></i>'
        f'<i class="working" style="width:{percent(working, full_width)}"></i>'
        f'<i class="mapped" style="width:{percent(mapped, full_width)}"></i>'
        f'<i class="spike" style="left:{percent(held, full_width)};width:{percent(spike, full_width)}"></i>'
    )
    return _row(title, label, meter, format_bytes(_value(measurement, "needed_bytes")))


def _row(title: str, label: str, meter: str, number: str) -> str:
    return (
        f'<div class="ls-bar" role="img" aria-label="{label}" title="{label}"><span '
        f'class="ls-name">{escape(title)}</span><span class="ls-meter">{meter}</span><span '
        f'class="ls-number">{number}</span></div>'
    )


def _latency(good: Sequence[Measurement]) -> str:
    first = _times(good, "first_token_s", "first", "To the first token")
    between = _times(good, "inter_token_median_s", "each", "Between tokens, median")
    return f'<div class="ls-card"><h3>Latency</h3>{first}{between}</div>'


def _times(good: Sequence[Measurement], key: str, kind: str, heading: str) -> str:
    full_width = max(_value(each, key) for each in good) * 1.04
    rows = ""
    for each in good:
        value, title = _value(each, key), title_of(each.case.variant)
        label = escape(f"{title}: {heading.lower()} {format_seconds(value)}", quote=True)
        meter = f'<i class="{kind}" style="width:{percent(value, full_width)}"></i>'
        rows += _row(title, label, meter, format_seconds(value))
    return f'<h4>{heading} {tip(BY_KEY[key].includes, heading)}</h4><div class="ls-bars">{rows}</div>'
