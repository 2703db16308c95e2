"""Build the standalone HTML page: one file, no scripts, no requests, light or dark as the reader's system.

Every text from a model, a prompt or a machine is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from layerstream import format_bytes

from ..divergence import REFERENCE_FACT
from ..measurement import Memory
from .memory_notes import has_device, notes_of, tier_lines
from .metric import Metric
from .metrics import NOISE_FLOOR, TEXTS, Row, measured, not_measured
from .page_style import STYLE
from .plots import divergence_plot, latency_plot, length_plots, memory_plot
from .tables import GROUPS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MEMORY_NOTE = (
    "Held is what the weights keep. Working comes on top of it at the peak; mapped is resident too, but the "
    "system reclaims it when memory is short. The load spike is the thin bar that starts where held ends."
)
_DEVICE_MEMORY_NOTE = (
    "Held is what the weights keep on the device. Working comes on top of it at the peak of torch's "
    "allocator. The driver's own memory (its context, kernels) is not part of it."
)
_HOST_MEMORY_NOTE = (
    "Held is what the weights keep in host memory. Working comes on top of it while the model runs. Mapped "
    "files and the load spike are in the table: libraries, and the checkpoint while it is copied."
)
# the ledger is part of the plan, which is text for people
_FACTS_SHOWN_ELSEWHERE = ("margins", "reference_margins", "reference_token_ids", "ledger", REFERENCE_FACT)


def html_page(rows: Sequence[Row]) -> str:
    """Return the page for `rows`."""
    sections = [
        _overview(rows),
        *_memory_figures(rows),
        _notes([*tier_lines(rows), *notes_of(rows)]),
        _by_length(rows, "Latency", "Shorter is better. Whiskers end at the 95th percentile.", latency_plot),
        _figure(
            "Divergence",
            "Further left is closer to the exact reference; 0 is the same distribution.",
            divergence_plot(rows),
        ),
        *(
            _figure(
                f"Prompt length, {variant}",
                "Both axes are logarithmic: a quadratic line is twice as steep as a linear one.",
                drawing,
            )
            for variant, drawing in length_plots(rows)
        ),
        *(_table(rows, group, heading) for group, heading in GROUPS.items() if group != "quality"),
        *(
            _table(rows, "quality", f"{GROUPS['quality']}, on {description}", text=text)
            for text, description in TEXTS.items()
        ),
        _answers(rows),
        _details(rows),
        _definitions(rows),
        _environment(rows),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>One prompt, every variant</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _memory_figures(rows: Sequence[Row]) -> list[str]:
    """Return the drawing of memory; on an accelerator one for each of the two memories."""
    if not has_device(rows):
        return [_by_length(rows, "Memory", _MEMORY_NOTE, memory_plot)]
    return [
        _by_length(rows, "Device memory", _DEVICE_MEMORY_NOTE, partial(memory_plot, memory="device")),
        _by_length(rows, "Host memory", _HOST_MEMORY_NOTE, partial(memory_plot, memory="host")),
    ]


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class=note>{escape(note)}</p>" for note in notes)


def _overview(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row.shown.case.model.rstrip("/").rpartition("/")[2] for row in rows)
    models = ", ".join(names) or "no model"
    prompts = dict.fromkeys(row.shown.case.prompt for row in rows)
    good = sum(row.shown.status == "ok" for row in rows)
    warning = "" if all(row.shown.isolation == "process" for row in rows) else _IN_PROCESS_WARNING
    quotes = "".join(f"<blockquote>{escape(prompt)}</blockquote>" for prompt in prompts)
    missing = "".join(
        f'<li><b>{escape(entry.names)}</b> <span class="{entry.status}">{escape(entry.outcome)}</span></li>'
        for entry in not_measured(rows)
    )
    return (
        "<h1>One prompt, every variant</h1>"
        f"<p>{escape(models)}: {good} of {len(rows)} cases measured, one after another.</p>{warning}{quotes}"
        + (f"<h2>Not measured</h2><ul>{missing}</ul>" if missing else "")
    )


_IN_PROCESS_WARNING = (
    '<p class="failed">Some cases ran in a shared process: their memory figures may include what earlier '
    "cases left behind.</p>"
)


def _figure(heading: str, note: str, drawing: str) -> str:
    if not drawing:
        return ""
    head = f"<h2>{escape(heading)}</h2><p class=note>{escape(note)}</p>"
    return f"<section>{head}<div class=wide>{drawing}</div></section>"


def _by_length(rows: Sequence[Row], heading: str, note: str, draw: Callable[[Sequence[Row]], str]) -> str:
    """Return one drawing per prompt length; all but the first are collapsed."""
    lengths = dict.fromkeys(row.shown.case.prompt_tokens for row in rows)
    drawings = [
        (length, draw([row for row in rows if row.shown.case.prompt_tokens == length])) for length in lengths
    ]
    drawings = [(length, drawing) for length, drawing in drawings if drawing]
    if not drawings:
        return ""
    first, *others = drawings
    collapsed = "".join(
        f"<details><summary>{_length(length)}</summary>{drawing}</details>" for length, drawing in others
    )
    return _figure(heading, f"{_length(first[0])}. {note}" if others else note, first[1] + collapsed)


def _length(prompt_tokens: int) -> str:
    return f"{prompt_tokens} prompt tokens" if prompt_tokens else "The original prompt"


def _table(rows: Sequence[Row], group: str, heading: str, *, text: str = "") -> str:
    metrics = [metric for metric in measured(rows, group) if metric.key.endswith(text)]
    shown = [row for row in rows if any(metric.key in row.values for metric in metrics)]
    if not shown:
        return ""
    heads = "".join(
        f'<th scope="col" title="{escape(metric.includes)}">{escape(metric.title.partition(",")[0])}</th>'
        for metric in metrics
    )
    lines = "".join(f'<tr><th scope="row">{_name(row)}</th>{_cells(row, metrics)}</tr>' for row in shown)
    head = f"<thead><tr><th scope=col>variant</th>{heads}</tr></thead>"
    table = f"<div class=wide><table>{head}<tbody>{lines}</tbody></table></div>"
    return f"<section><h2>{escape(heading)}</h2>{table}</section>"


def _name(row: Row) -> str:
    badges = ""
    if row.is_bit_exact:
        badges += _badge("exact", "bit-exact", "Every compared logit is equal, bit for bit")
    if row.is_noise_floor:
        badges += _badge("noisy", "noise floor", NOISE_FLOOR)
    if row.is_noisy:
        badges += _badge("noisy", "noisy", "The machine was busy, or the times between tokens spread widely")
    return f"{escape(row.label)}{badges}"


def _badge(kind: str, text: str, tip: str) -> str:
    return f'<span class="badge {kind}" title="{escape(tip)}">{text}</span>'


def _cells(row: Row, metrics: Sequence[Metric]) -> str:
    return "".join(
        f'<td title="{escape(_tip(row, metric))}">{escape(row.text_of(metric))}</td>' for metric in metrics
    )


def _tip(row: Row, metric: Metric) -> str:
    spread = row.values.get(metric.key)
    if spread is None:
        return f"{metric.title}: not measured"
    rounds = f", median of {spread.rounds} rounds" if spread.rounds > 1 else ""
    return f"{metric.title} {spread.median:.6g}{rounds}. {metric.includes}"


def _answers(rows: Sequence[Row]) -> str:
    good = [row for row in rows if row.shown.status == "ok"]
    if not good:
        return ""
    columns = "".join(
        f"<article><h3>{_name(row)}</h3><p class=note>{escape(row.outcome())}</p>"
        f"<pre>{_marked_answer(row)}</pre></article>"
        for row in good
    )
    note = "<p class=note>The first token that differs is marked.</p>"
    return f"<section><h2>Answers</h2>{note}<div class=columns>{columns}</div></section>"


def _marked_answer(row: Row) -> str:
    shown = row.shown
    if shown.divergence is None or not shown.token_texts:
        return escape(shown.text)
    at = shown.divergence.position
    same, rest = "".join(shown.token_texts[:at]), "".join(shown.token_texts[at + 1 :])
    first = shown.token_texts[at] if at < len(shown.token_texts) else shown.divergence.variant_token
    tip = f"the reference has {shown.divergence.reference_token!r} here"
    mark = f'<mark title="{escape(tip)}">{escape(first) or "∅"}</mark>'
    return f'{escape(same)}{mark}<span class="after">{escape(rest)}</span>'


def _details(rows: Sequence[Row]) -> str:
    entries = []
    for row in rows:
        facts = {name: value for name, value in row.shown.facts.items() if name not in _FACTS_SHOWN_ELSEWHERE}
        inner = _phases(row) + _list(facts)
        if row.shown.stderr_tail:
            inner += f"<p>Last lines of standard error:</p><pre>{escape(row.shown.stderr_tail)}</pre>"
        if inner:
            entries.append(f"<details><summary>{escape(row.label)}</summary>{inner}</details>")
    return f"<section><h2>What actually ran</h2>{''.join(entries)}</section>" if entries else ""


def _phases(row: Row) -> str:
    if row.shown.memory is None:
        return ""
    memory = row.shown.memory
    columns = [column for column in _PHASE_COLUMNS if column.is_always_shown or column.is_in(memory)]
    heads = "".join(
        f'<th scope=col title="{escape(column.includes)}">{column.title}</th>' for column in columns
    )
    lines = "".join(
        f"<tr><th scope=row>{escape(phase.phase)}</th>"
        + "".join(f"<td>{format_bytes(getattr(phase, column.key))}</td>" for column in columns)
        + "</tr>"
        for phase in memory.phases
    )
    return (
        f"<div class=wide><table><thead><tr><th scope=col>phase</th>{heads}"
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PhaseColumn:
    """A column of a case's phases: the field of `PhaseMemory`, its title and what it includes."""

    key: str
    title: str
    includes: str
    is_always_shown: bool = True

    def is_in(self, memory: Memory) -> bool:
        """Return whether it was measured on an accelerator in any phase."""
        return memory.has_device and any(getattr(phase, self.key) for phase in memory.phases)


_PHASE_COLUMNS = (
    _PhaseColumn(key="anonymous_bytes", title="anonymous", includes="Private memory at the end of the phase"),
    _PhaseColumn(
        key="shared_bytes",
        title="shared",
        includes="Shared memory at the end of the phase: what the driver allocated and pinned",
        is_always_shown=False,
    ),
    _PhaseColumn(key="file_bytes", title="files", includes="Mapped files at the end of the phase"),
    _PhaseColumn(
        key="peak_bytes",
        title="peak",
        includes="Highest resident set during the phase, mapped files included",
    ),
    _PhaseColumn(
        key="device_allocated_bytes",
        title="device peak",
        includes="Highest that torch allocated on the device during the phase",
        is_always_shown=False,
    ),
    _PhaseColumn(
        key="device_reserved_bytes",
        title="device reserved",
        includes="Highest that torch reserved on the device during the phase",
        is_always_shown=False,
    ),
    _PhaseColumn(
        key="device_process_bytes",
        title="device process",
        includes="What NVML counted for the process at the end of the phase",
        is_always_shown=False,
    ),
)


def _list(facts: dict[str, Any]) -> str:
    entries = "".join(f"<dt>{escape(str(name))}</dt><dd>{_fact(value)}</dd>" for name, value in facts.items())
    return f"<dl>{entries}</dl>" if entries else ""


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
    text = str(value)
    return f"<pre>{escape(text)}</pre>" if "\n" in text else escape(text)


def _definitions(rows: Sequence[Row]) -> str:
    metrics = [metric for group in GROUPS for metric in measured(rows, group)]
    entries = "".join(
        f"<dt>{escape(metric.title)}</dt><dd>{escape(metric.includes)}.</dd>" for metric in metrics
    )
    return f"<section><h2>What each figure includes</h2><dl>{entries}</dl></section>" if entries else ""


def _environment(rows: Sequence[Row]) -> str:
    environments = [row.shown.environment for row in rows if row.shown.environment]
    # the load average differs from run to run and does not describe the machine
    distinct = {
        json.dumps({**environment, "load_average": None}, sort_keys=True): environment
        for environment in environments
    }
    entries = "".join(
        f"<details><summary>Environment</summary>{_list(environment)}</details>"
        for environment in distinct.values()
    )
    return f"<section><h2>Measured on</h2>{entries}</section>" if entries else ""
