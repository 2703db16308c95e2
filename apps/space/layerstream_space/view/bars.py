"""Memory and latency of the columns as bars. They are HTML, so they fit any width, even a phone's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerstream_compare import Measurement, memory_notes

from .elements import BY_KEY, TITLES, escape, format_bytes, format_seconds, percent, tip, title_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """One memory of the machine.

    Attributes:
        heading: shown above its bars; empty if there is only this one.
        about: what the heading means.
        parts: the parts of a bar: the metric, its name in the legend, its CSS class.
        budget: the fact with the streamed model's budget there.
        budget_tip: what that budget is for.
    """

    heading: str
    about: str
    parts: tuple[tuple[str, str, str], ...]
    budget: str
    budget_tip: str


_BUDGET_TIP = (
    "What the streamed model may use for weights, KV cache and activations. The bars show the whole "
    "process, which also holds a tokenizer and Python's own objects. Mapped files do not count towards the "
    "budget."
)
_ONE_MEMORY = (
    _Memory(
        heading="",
        about="",
        parts=(
            ("held_bytes", "weights", "held"),
            ("working_bytes", "working memory", "working"),
            ("mapped_bytes", "mapped files", "mapped"),
            ("load_spike_bytes", "loading spike", "spike"),
        ),
        budget="budget_bytes",
        budget_tip=_BUDGET_TIP,
    ),
)
_TWO_MEMORIES = (
    _Memory(
        heading="On the device",
        about="The accelerator's own memory, as torch counts it. What the driver itself takes comes on top.",
        parts=(
            ("device_held_bytes", "weights", "held"),
            ("device_working_bytes", "working memory", "working"),
        ),
        budget="budget_bytes",
        budget_tip="What the streamed model may use on the device and, its own line, in host memory.",
    ),
    _Memory(
        heading="In host memory",
        about=(
            "What running takes in the machine's own memory. Mapped files are not in it: libraries, and the "
            "checkpoint while it is copied to the device."
        ),
        parts=(
            ("host_held_bytes", "weights", "held"),
            ("host_working_bytes", "working memory", "working"),
        ),
        budget="host_budget_bytes",
        budget_tip="",
    ),
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
    """Return memory and latency plots of the successful measurements; a note if there are none yet."""
    good = [
        each
        for each in measurements
        if each.status == "ok" and each.memory is not None and each.timing is not None
    ]
    if not good:
        return _EMPTY
    notes = "".join(f'<p class="ls-note">{escape(note)}</p>' for note in memory_notes(good, _QUOTED))
    return f'<section class="ls-plots" aria-label="Plots">{_memory(good)}{_latency(good)}{notes}</section>'


def has_device(measurements: Sequence[Measurement]) -> bool:
    """Return whether any of the measurements was made on an accelerator, which has a memory of its own."""
    return any(each.memory is not None and each.memory.has_device for each in measurements)


def _value(measurement: Measurement, key: str) -> float:
    return BY_KEY[key].value(measurement) or 0.0


def _memory(good: Sequence[Measurement]) -> str:
    memories = _TWO_MEMORIES if has_device(good) else _ONE_MEMORY
    first = memories[0]
    legend = "".join(
        f'<li><i class="{kind}"></i>{name} {tip(BY_KEY[_general(key)].includes, name)}</li>'
        for key, name, kind in first.parts
    )
    if _budgets(good, first):
        legend += (
            f'<li><i class="line"></i>budget of the streamed model {tip(first.budget_tip, "budget")}</li>'
        )
    bars = "".join(_memory_bars(good, memory) for memory in memories)
    two = " two" if len(memories) > 1 else ""
    return (
        f'<div class="ls-card ls-memory{two}"><h3>Memory</h3><ul class="ls-legend">{legend}</ul>{bars}</div>'
    )


def _general(key: str) -> str:
    """Return the metric that explains a part in the legend, which is the same for both memories."""
    return key.removeprefix("device_")


def _budgets(good: Sequence[Measurement], memory: _Memory) -> list[int]:
    return [int(each.facts[memory.budget]) for each in good if memory.budget in each.facts]


def _memory_bars(good: Sequence[Measurement], memory: _Memory) -> str:
    budgets = _budgets(good, memory)
    full_width = max([*(_end(each, memory) for each in good), *budgets]) * 1.04
    rows = "".join(_memory_row(each, memory, full_width) for each in good)
    line = ""
    if budgets:
        line = (
            f'<div class="ls-budget" style="--at:{percent(budgets[0], full_width)}">'
            f"<span>budget {format_bytes(budgets[0])}</span></div>"
        )
    heading = f"<h4>{memory.heading} {tip(memory.about, memory.heading)}</h4>" if memory.heading else ""
    return (
        f'{heading}<div class="ls-bars {"has-budget" if budgets else ""}">{rows}<div '
        f'class="ls-over">{line}</div></div>'
    )


def _end(measurement: Measurement, memory: _Memory) -> float:
    """Return where a measurement's bar ends, in bytes."""
    keys = [key for key, *_ in memory.parts]
    if "load_spike_bytes" not in keys:
        return sum(_value(measurement, key) for key in keys)
    return max(
        _value(measurement, "peak_over_baseline_bytes"),
        _value(measurement, "held_bytes") + _value(measurement, "load_spike_bytes"),
    )


def _memory_row(measurement: Measurement, memory: _Memory, full_width: float) -> str:
    sizes = [(_value(measurement, key), name, kind) for key, name, kind in memory.parts]
    title = title_of(measurement.case.variant)
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
