"""The standalone HTML page: one file, no script, no request. Light and dark follow the reader's system.

It knows rows, the drawings and HTML; every text from a model, a prompt or a machine is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ..divergence import REFERENCE_FACT
from ..units import format_bytes
from .metrics import NOISE_FLOOR, TEXTS, Metric, Row, measured
from .page_style import STYLE
from .plots import divergence_plot, latency_plot, memory_plot, sweep_plots
from .tables import GROUPS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MEMORY_NOTE = (
    "Held is what the weights keep. Working lies on top of it at the highest moment; mapped is resident too, but the system takes "
    "it back when memory is short. The load spike, thin, begins where held ends."
)
_OWN_FACTS = ("margins", "reference_margins", "reference_token_ids", REFERENCE_FACT)


def html_page(rows: Sequence[Row]) -> str:
    """Return the page for these rows."""
    sections = [
        _overview(rows),
        _by_length(
            rows,
            "Memory",
            _MEMORY_NOTE,
            memory_plot,
        ),
        _by_length(rows, "Latency", "Shorter is better. Whiskers end at the 95th percentile.", latency_plot),
        _figure(
            "Divergence",
            "Left is closer to the exact reference; 0 is the very same distribution.",
            divergence_plot(rows),
        ),
        *(
            _figure(
                f"Prompt length, {variant}",
                "Both axes are logarithmic: a line twice as steep is quadratic.",
                drawing,
            )
            for variant, drawing in sweep_plots(rows)
        ),
        *(_table(rows, group, heading) for group, heading in GROUPS.items() if group != "quality"),
        *(
            _table(rows, "quality", f"{GROUPS['quality']}, on {told}", text=text)
            for text, told in TEXTS.items()
        ),
        _answers(rows),
        _details(rows),
        _glossary(rows),
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


def _overview(rows: Sequence[Row]) -> str:
    models = (
        ", ".join(dict.fromkeys(row.shown.case.model.rstrip("/").rpartition("/")[2] for row in rows))
        or "nothing"
    )
    prompts = dict.fromkeys(row.shown.case.prompt for row in rows)
    good = sum(row.shown.status == "ok" for row in rows)
    weaker = "" if all(row.shown.isolation == "process" for row in rows) else _WEAKER
    told = "".join(f"<blockquote>{escape(prompt)}</blockquote>" for prompt in prompts)
    missing = "".join(
        f'<li><b>{escape(row.label)}</b> <span class="{row.shown.status}">{escape(row.outcome())}</span></li>'
        for row in rows
        if row.shown.status != "ok"
    )
    return (
        "<h1>One prompt, every variant</h1>"
        f"<p>{escape(models)}: {good} of {len(rows)} cases measured, one after another.</p>{weaker}{told}"
        + (f"<h2>Not measured</h2><ul>{missing}</ul>" if missing else "")
    )


_WEAKER = '<p class="failed">Some cases ran inside one process: their memory figures may show what other cases left behind.</p>'


def _figure(heading: str, note: str, drawing: str) -> str:
    return (
        f"<section><h2>{escape(heading)}</h2><p class=note>{escape(note)}</p><div class=wide>{drawing}</div></section>"
        if drawing
        else ""
    )


def _by_length(rows: Sequence[Row], heading: str, note: str, draw: Callable[[Sequence[Row]], str]) -> str:
    """Return one drawing for each prompt length; all but the first folded away."""
    lengths = dict.fromkeys(row.shown.case.prompt_tokens for row in rows)
    drawings = [
        (length, draw([row for row in rows if row.shown.case.prompt_tokens == length])) for length in lengths
    ]
    drawings = [(length, drawing) for length, drawing in drawings if drawing]
    if not drawings:
        return ""
    first, *others = drawings
    folded = "".join(
        f"<details><summary>{_length(length)}</summary>{drawing}</details>" for length, drawing in others
    )
    return _figure(heading, f"{_length(first[0])}. {note}" if others else note, first[1] + folded)


def _length(prompt_tokens: int) -> str:
    return f"{prompt_tokens} prompt tokens" if prompt_tokens else "The prompt as it is"


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
    return (
        f"<section><h2>{escape(heading)}</h2><div class=wide><table><thead><tr><th scope=col>variant</th>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div></section>"
    )


def _name(row: Row) -> str:
    badges = (
        '<span class="badge exact" title="Every compared logit is equal, bit for bit">bit-exact</span>'
        if row.is_bit_exact
        else ""
    )
    if row.is_noise_floor:
        badges += f'<span class="badge noisy" title="{NOISE_FLOOR}">noise floor</span>'
    badges += (
        '<span class="badge noisy" title="The machine was busy, or token times spread widely">noisy</span>'
        if row.is_noisy
        else ""
    )
    return f"{escape(row.label)}{badges}"


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
    lanes = "".join(
        f"<article><h3>{_name(row)}</h3><p class=note>{escape(row.outcome())}</p><pre>{_marked_answer(row)}</pre></article>"
        for row in good
    )
    note = "<p class=note>The first token that differs is marked.</p>"
    return f"<section><h2>Answers</h2>{note}<div class=lanes>{lanes}</div></section>"


def _marked_answer(row: Row) -> str:
    shown = row.shown
    if shown.divergence is None or not shown.token_texts:
        return escape(shown.text)
    at = shown.divergence.position
    same, rest = "".join(shown.token_texts[:at]), "".join(shown.token_texts[at + 1 :])
    first = shown.token_texts[at] if at < len(shown.token_texts) else shown.divergence.variant_token
    tip = f"the reference has {shown.divergence.reference_token!r} here"
    return f'{escape(same)}<mark title="{escape(tip)}">{escape(first) or "∅"}</mark><span class="after">{escape(rest)}</span>'


def _details(rows: Sequence[Row]) -> str:
    entries = []
    for row in rows:
        facts = {name: value for name, value in row.shown.facts.items() if name not in _OWN_FACTS}
        inner = _phases(row) + _list(facts)
        if row.shown.stderr_tail:
            inner += f"<p>Last lines of standard error:</p><pre>{escape(row.shown.stderr_tail)}</pre>"
        if inner:
            entries.append(f"<details><summary>{escape(row.label)}</summary>{inner}</details>")
    return f"<section><h2>What really ran</h2>{''.join(entries)}</section>" if entries else ""


def _phases(row: Row) -> str:
    if row.shown.memory is None:
        return ""
    lines = "".join(
        f"<tr><th scope=row>{escape(phase.phase)}</th><td>{format_bytes(phase.anonymous_bytes)}</td>"
        f"<td>{format_bytes(phase.file_bytes)}</td><td>{format_bytes(phase.peak_bytes)}</td></tr>"
        for phase in row.shown.memory.phases
    )
    return (
        "<div class=wide><table><thead><tr><th scope=col>phase</th>"
        '<th scope=col title="Private memory at the end of the phase">anonymous</th>'
        '<th scope=col title="Mapped files at the end of the phase">files</th>'
        '<th scope=col title="Highest resident set during the phase, mapped files and the libraries included">peak</th>'
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _list(facts: dict[str, Any]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(str(name))}</dt><dd>{_fact(value)}</dd>" for name, value in facts.items())
        + "</dl>"
        if facts
        else ""
    )


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
    text = str(value)
    return f"<pre>{escape(text)}</pre>" if "\n" in text else escape(text)


def _glossary(rows: Sequence[Row]) -> str:
    metrics = [metric for group in GROUPS for metric in measured(rows, group)]
    entries = "".join(
        f"<dt>{escape(metric.title)}</dt><dd>{escape(metric.includes)}.</dd>" for metric in metrics
    )
    return f"<section><h2>What each figure includes</h2><dl>{entries}</dl></section>" if entries else ""


def _environment(rows: Sequence[Row]) -> str:
    environments = [row.shown.environment for row in rows if row.shown.environment]
    # the load differs from run to run and says nothing of the machine
    distinct = {json.dumps({**each, "load_average": None}, sort_keys=True): each for each in environments}
    told = "".join(
        f"<details><summary>Environment</summary>{_list(each)}</details>" for each in distinct.values()
    )
    return f"<section><h2>Measured on</h2>{told}</section>" if told else ""
