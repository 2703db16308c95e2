"""Memory and latency of the columns as bars of HTML: they take the width they get, on a phone too."""

from __future__ import annotations

from collections.abc import Sequence

from layerstream_compare import Measurement

from .elements import BY_KEY, escape, format_bytes, format_seconds, percent, tip, title_of

_PARTS = (
    ("held_bytes", "weights", "held"),
    ("working_bytes", "working", "working"),
    ("mapped_bytes", "mapped files", "mapped"),
    ("load_spike_bytes", "load spike", "spike"),
)
"""Of a bar of memory: the metric, its name in the legend, its look."""

_BUDGET_TIP = (
    "What the streamed model was allowed for weights, cache and activations. The bars are of the whole process, which keeps a "
    "tokenizer and Python's own objects too; mapped files are no part of the budget."
)


def plots_view(measurements: Sequence[Measurement]) -> str:
    """Return the memory plot and the latency plot of what was measured; a note where nothing was yet."""
    good = [
        each
        for each in measurements
        if each.status == "ok" and each.memory is not None and each.timing is not None
    ]
    if not good:
        return (
            '<section class="ls-plots"><div class="ls-card ls-hollow"><h3>Memory</h3><p>Bars appear when the first column is done: '
            'weights, working memory, the spike while loading.</p></div><div class="ls-card ls-hollow"><h3>Latency</h3>'
            "<p>Time to the first token and between tokens.</p></div></section>"
        )
    return f'<section class="ls-plots" aria-label="Plots">{_memory(good)}{_latency(good)}</section>'


def _value(measurement: Measurement, key: str) -> float:
    return BY_KEY[key].value(measurement) or 0.0


def _memory(good: Sequence[Measurement]) -> str:
    budgets = [int(each.facts["budget_bytes"]) for each in good if "budget_bytes" in each.facts]
    ends = [
        max(
            _value(each, "peak_over_baseline_bytes"),
            _value(each, "held_bytes") + _value(each, "load_spike_bytes"),
        )
        for each in good
    ]
    most = max([*ends, *budgets]) * 1.04
    rows = "".join(_memory_row(each, most) for each in good)
    line = ""
    if budgets:
        left = percent(budgets[0], most)
        line = (
            f'<div class="ls-budget" style="--at:{left}"><span>budget {format_bytes(budgets[0])}</span></div>'
        )
    legend = "".join(
        f'<li><i class="{kind}"></i>{name} {tip(BY_KEY[key].includes, name)}</li>'
        for key, name, kind in _PARTS
    ) + (
        f'<li><i class="line"></i>budget of the streamed column {tip(_BUDGET_TIP, "budget")}</li>'
        if budgets
        else ""
    )
    return (
        f'<div class="ls-card ls-memory"><h3>Memory</h3><ul class="ls-legend">{legend}</ul>'
        f'<div class="ls-bars {"has-budget" if budgets else ""}">{rows}<div class="ls-over">{line}</div></div></div>'
    )


def _memory_row(each: Measurement, most: float) -> str:
    held, working, mapped, spike = (_value(each, key) for key, _, _ in _PARTS)
    name = escape(title_of(each.case.variant))
    told = f"{name}: {format_bytes(held)} weights, {format_bytes(working)} working memory, {format_bytes(mapped)} mapped files, "
    told += f"load spike {format_bytes(spike)}"
    return (
        f'<div class="ls-bar" role="img" aria-label="{told}" title="{told}"><span class="ls-name">{name}</span>'
        f'<span class="ls-meter"><i class="held" style="width:{percent(held, most)}"></i>'
        f'<i class="working" style="width:{percent(working, most)}"></i>'
        f'<i class="mapped" style="width:{percent(mapped, most)}"></i>'
        f'<i class="spike" style="left:{percent(held, most)};width:{percent(spike, most)}"></i></span>'
        f'<span class="ls-number">{format_bytes(_value(each, "needed_bytes"))}</span></div>'
    )


def _latency(good: Sequence[Measurement]) -> str:
    parts = [
        _times(good, "first_token_s", "first", "To the first token"),
        _times(good, "inter_token_median_s", "each", "Between tokens, median"),
    ]
    return f'<div class="ls-card"><h3>Latency</h3>{"".join(parts)}</div>'


def _times(good: Sequence[Measurement], key: str, kind: str, heading: str) -> str:
    most = max(_value(each, key) for each in good) * 1.04
    rows = ""
    for each in good:
        value, name = _value(each, key), escape(title_of(each.case.variant))
        told = f"{name}: {heading.lower()} {format_seconds(value)}"
        rows += (
            f'<div class="ls-bar" role="img" aria-label="{told}" title="{told}"><span class="ls-name">{name}</span>'
            f'<span class="ls-meter"><i class="{kind}" style="width:{percent(value, most)}"></i></span>'
            f'<span class="ls-number">{format_seconds(value)}</span></div>'
        )
    return f'<h4>{heading} {tip(BY_KEY[key].includes, heading)}</h4><div class="ls-bars">{rows}</div>'
