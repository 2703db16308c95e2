"""Memory and latency of the columns as bars. They are HTML, so they fit any width, even a phone's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerstream_compare import Measurement, Row, memory_notes, rows_of

from .elements import TITLES, escape, format_bytes, format_seconds, percent, title_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """One memory of the machine.

    Attributes:
        heading: shown above its bars; empty if there is only this one.
        parts: the parts of a bar: the metric, its name in the legend, its CSS class.
        budget: the fact with the streamed model's budget there.
    """

    heading: str
    parts: tuple[tuple[str, str, str], ...]
    budget: str


_ONE_MEMORY = (
    _Memory(
        heading="",
        parts=(
            ("held_bytes", "weights", "held"),
            ("working_bytes", "working memory", "working"),
            ("mapped_bytes", "mapped files", "mapped"),
            ("load_spike_bytes", "loading spike", "spike"),
        ),
        budget="budget_bytes",
    ),
)
_TWO_MEMORIES = (
    _Memory(
        heading="On the device",
        parts=(
            ("device_held_bytes", "weights", "held"),
            ("device_working_bytes", "working memory", "working"),
        ),
        budget="budget_bytes",
    ),
    _Memory(
        heading="In host memory",
        parts=(
            ("host_held_bytes", "weights", "held"),
            ("host_working_bytes", "working memory", "working"),
        ),
        budget="host_budget_bytes",
    ),
)

_ROOM_FOR_RANGES = 1.25
_NOISY = (
    "Pale bars: the machine was busy with other work, so these times say little. Measure again when it is "
    "quiet, or in several rounds."
)
_QUOTED = {name: f"“{title}”" for name, title in TITLES.items()}
"""Names of variants inside a sentence, where "more than In memory" could be misread."""

_EMPTY = (
    '<section class="ls-plots"><div class="ls-card ls-hollow"><h3>Memory</h3><p>Bars appear when the first '
    'column is done: weights, working memory, and the spike while loading.</p></div><div class="ls-card '
    'ls-hollow"><h3>Latency</h3>'
    "<p>Time to the first token, and time between tokens.</p></div></section>"
)


def plots_view(measurements: Sequence[Measurement]) -> str:
    """Return memory and latency plots of the successful measurements; a note if there are none yet.

    Several rounds of a case share a bar, which shows their median.
    """
    good = [
        each
        for each in measurements
        if each.status == "ok" and each.memory is not None and each.timing is not None
    ]
    if not good:
        return _EMPTY
    rows = rows_of(good)
    notes = "".join(f'<p class="ls-note">{escape(note)}</p>' for note in memory_notes(good, _QUOTED))
    return f'<section class="ls-plots" aria-label="Plots">{_memory(rows)}{_latency(rows)}{notes}</section>'


def has_device(measurements: Sequence[Measurement]) -> bool:
    """Return whether any of the measurements was made on an accelerator, which has a memory of its own."""
    return any(each.memory is not None and each.memory.has_device for each in measurements)


def _value(row: Row, key: str) -> float:
    return row.median_of(key) or 0.0


def _memory(rows: Sequence[Row]) -> str:
    memories = _TWO_MEMORIES if has_device([row.shown for row in rows]) else _ONE_MEMORY
    first = memories[0]
    legend = "".join(f'<li><i class="{kind}"></i>{name}</li>' for _, name, kind in first.parts)
    if _budgets(rows, first):
        legend += '<li><i class="line"></i>budget of the streamed model; mapped files do not count</li>'
    bars = "".join(_memory_bars(rows, memory) for memory in memories)
    two = " two" if len(memories) > 1 else ""
    return (
        f'<div class="ls-card ls-memory{two}"><h3>Memory</h3><ul class="ls-legend">{legend}</ul>{bars}</div>'
    )


def _budgets(rows: Sequence[Row], memory: _Memory) -> list[int]:
    return [int(row.shown.facts[memory.budget]) for row in rows if memory.budget in row.shown.facts]


def _memory_bars(rows: Sequence[Row], memory: _Memory) -> str:
    budgets = _budgets(rows, memory)
    full_width = max([*(_end(row, memory) for row in rows), *budgets]) * 1.04
    bars = "".join(_memory_row(row, memory, full_width) for row in rows)
    line = ""
    if budgets:
        line = (
            f'<div class="ls-budget" style="--at:{percent(budgets[0], full_width)}">'
            f"<span>budget {format_bytes(budgets[0])}</span></div>"
        )
    heading = f"<h4>{memory.heading}</h4>" if memory.heading else ""
    return (
        f'{heading}<div class="ls-bars {"has-budget" if budgets else ""}">{bars}<div '
        f'class="ls-over">{line}</div></div>'
    )


def _end(row: Row, memory: _Memory) -> float:
    """Return where a row's bar ends, in bytes."""
    keys = [key for key, *_ in memory.parts]
    if "load_spike_bytes" not in keys:
        return sum(_value(row, key) for key in keys)
    return max(
        _value(row, "peak_over_baseline_bytes"),
        _value(row, "held_bytes") + _value(row, "load_spike_bytes"),
    )


def _memory_row(row: Row, memory: _Memory, full_width: float) -> str:
    sizes = [(_value(row, key), name, kind) for key, name, kind in memory.parts]
    title = title_of(row.shown.case.variant)
    where = f" {memory.heading[0].lower()}{memory.heading[1:]}" if memory.heading else ""
    parts = ", ".join(f"{format_bytes(size)} {name}" for size, name, _ in sizes)
    label = escape(f"{title}{where}: {parts}", quote=True)
    held, working = sizes[0][0], sizes[1][0]
    meter = "".join(_part(size, kind, held, full_width) for size, _, kind in sizes)
    return _row(title, label, meter, format_bytes(held + working))


def _part(size: float, kind: str, held: float, full_width: float) -> str:
    width = f"width:{percent(size, full_width)}"
    if kind == "spike":
        width = f"left:{percent(held, full_width)};{width}"
    return f'<i class="{kind}" style="{width}"></i>'


def _row(title: str, label: str, meter: str, number: str) -> str:
    return (
        f'<div class="ls-bar" role="img" aria-label="{label}" title="{label}"><span '
        f'class="ls-name">{escape(title)}</span><span class="ls-meter">{meter}</span><span '
        f'class="ls-number">{number}</span></div>'
    )


def _latency(rows: Sequence[Row]) -> str:
    first = _times(rows, "first_token_s", "To the first token")
    between = _times(rows, "inter_token_median_s", "Between tokens, median")
    noisy = "" if not any(row.is_noisy for row in rows) else f'<p class="ls-note">{_NOISY}</p>'
    return f'<div class="ls-card"><h3>Latency</h3>{first}{between}{noisy}</div>'


def _range(row: Row, key: str) -> tuple[float, float] | None:
    """Return between which values a time lies; None if one round on a quiet machine measured it."""
    spread = row.values[key]
    if spread.rounds > 1:
        return spread.minimum, spread.maximum
    if row.is_noisy and key == "inter_token_median_s":
        return spread.median, max(spread.median, _value(row, "inter_token_p95_s"))
    return None


def _time_meter(row: Row, key: str, between: tuple[float, float] | None, full_width: float) -> str:
    kind = "time unsure" if row.is_noisy else "time"
    meter = f'<i class="{kind}" style="width:{percent(_value(row, key), full_width)}"></i>'
    if between is None:
        return meter
    low, high = (percent(end, full_width) for end in between)
    return f'{meter}<i class="range" style="left:{low};width:calc({high} - {low})"></i>'


def _times(rows: Sequence[Row], key: str, heading: str) -> str:
    full_width = max(_value(row, key) for row in rows) * _ROOM_FOR_RANGES
    html = ""
    for row in rows:
        between, title = _range(row, key), title_of(row.shown.case.variant)
        text = f"{'≈ ' if row.is_noisy else ''}{format_seconds(_value(row, key))}"
        label = f"{title}: {heading.lower()} {text}"
        if between is not None:
            label += f", between {format_seconds(between[0])} and {format_seconds(between[1])}"
        html += _row(title, escape(label, quote=True), _time_meter(row, key, between, full_width), text)
    return f'<h4>{heading}</h4><div class="ls-bars">{html}</div>'
