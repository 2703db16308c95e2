"""The same rows as a table for a terminal, as Markdown and as CSV.

It knows rows and columns; figures and their words are `metrics`' business.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..measurement import Measurement
from .metrics import BY_KEY, METRICS, Metric, Row, measured

GROUPS = {"memory": "Memory", "time": "Time", "quality": "Agreement with the exact reference"}
"""Groups of figures, with their headings."""

_DROPPED_FIRST = ("load_spike_bytes", "top1", "working_bytes", "first_token_s")
_FIGURE_WIDTH, _WORDS_WIDTH = 11, 44
_IN_TERMINAL = (
    "held_bytes",
    "working_bytes",
    "load_spike_bytes",
    "first_token_s",
    "inter_token_median_s",
    "kl_mean",
    "top1",
)


def terminal_table(rows: Sequence[Row], *, width: int = 120) -> Table:
    """Return the figures that fit into a terminal of `width` characters."""
    dropped = _DROPPED_FIRST[: max(0, len(_IN_TERMINAL) - (width - _WORDS_WIDTH) // _FIGURE_WIDTH)]
    metrics = [
        metric for key in _IN_TERMINAL if key not in dropped for metric in _terminal_metrics(key, rows)
    ]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("variant", overflow="fold")
    for metric in metrics:
        table.add_column(metric.title.partition(",")[0].replace(" ", "\n", 1), justify="right", no_wrap=True)
    table.add_column("answer", overflow="fold", min_width=14)
    for row in rows:
        figures = [
            Text(_median_text(row, metric), style="" if metric.key in row.values else "dim")
            for metric in metrics
        ]
        table.add_row(Text(row.label + (" (noisy)" if row.is_noisy else "")), *figures, _outcome(row))
    return table


def _terminal_metrics(key: str, rows: Sequence[Row]) -> list[Metric]:
    if key in BY_KEY:
        return [BY_KEY[key]]
    # one text is enough there: the reference's own answer, where it was measured
    found = [
        metric for metric in measured(rows, "quality") if metric.key in (f"{key}_answer", f"{key}_prose")
    ]
    return found[:1]


def _median_text(row: Row, metric: Metric) -> str:
    found = row.median_of(metric.key)
    return "–" if found is None else metric.show(found)


def _outcome(row: Row) -> Text:
    """Return the outcome in few words: reasons have lines of their own below the table."""
    status, found = row.shown.status, row.shown.divergence
    if status != "ok":
        return Text(status, style="red" if status == "failed" else "dim")
    words = row.outcome()
    if found is not None:
        words = f"differs at token {found.position + 1}" + (
            "" if math.isnan(found.margin) else f" (margin {found.margin:.2g})"
        )
    return Text(
        f"{words}, {row.standing}" if row.standing else words, style="green" if row.is_bit_exact else ""
    )


def terminal_notes(rows: Sequence[Row]) -> list[Text]:
    """Return a line for each case that was not measured, with the reason."""
    return [Text(f"{row.label}: {row.outcome()}") for row in rows if row.shown.status != "ok"]


def markdown(rows: Sequence[Row]) -> str:
    """Return everything as Markdown: a table for each group of figures, the answers, what failed, what each figure includes."""
    parts = ["# One prompt, every variant\n", _prompt(rows)]
    for group, heading in GROUPS.items():
        metrics = measured(rows, group)
        good = [row for row in rows if any(metric.key in row.values for metric in metrics)]
        if good:
            parts.append(
                f"## {heading}\n\n" + _markdown_table(good, metrics, with_outcome=group == "quality")
            )
    answers = [
        f"### {row.label}\n\n{row.outcome()}\n\n{_fenced(row.shown.text)}"
        for row in rows
        if row.shown.status == "ok"
    ]
    if answers:
        parts.append("## Answers\n\n" + "\n".join(answers))
    missing = [f"- **{_cell(row.label)}** {_cell(row.outcome())}" for row in rows if row.shown.status != "ok"]
    if missing:
        parts.append("## Not measured\n\n" + "\n".join(missing) + "\n")
    shown = [metric for group in GROUPS for metric in measured(rows, group)]
    parts.append(
        "## What each figure includes\n\n"
        + "\n".join(f"- **{each.title}** {each.includes}." for each in shown)
        + "\n"
    )
    return "\n".join(parts)


def _prompt(rows: Sequence[Row]) -> str:
    prompts = list(dict.fromkeys(row.shown.case.prompt for row in rows))
    return "\n".join(_fenced(prompt) for prompt in prompts)


def _markdown_table(rows: Sequence[Row], metrics: Sequence[Metric], *, with_outcome: bool) -> str:
    last = ["logits", "answer"] if with_outcome else ["noisy"]
    head = ["variant", *(metric.title for metric in metrics), *last]
    lines = [head, ["---", *["---:"] * len(metrics), *["---"] * len(last)]]
    for row in rows:
        marks = (
            [row.standing or "differs", row.outcome()] if with_outcome else ["yes" if row.is_noisy else ""]
        )
        lines.append([row.label, *(row.text_of(metric) for metric in metrics), *marks])
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _fenced(text: str) -> str:
    longest = max((len(run) for run in _runs_of_backticks(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def _runs_of_backticks(text: str) -> Iterable[str]:
    return "".join(character if character == "`" else " " for character in text).split()


def csv_text(measurements: Iterable[Measurement]) -> str:
    """Return one line a measurement, rounds apart; bytes, seconds, nats and shares as plain numbers, empty where not measured."""
    told = io.StringIO()
    writer = csv.writer(told, lineterminator="\n")
    writer.writerow([*_PLAIN, *(metric.key for metric in METRICS)])
    for each in measurements:
        writer.writerow(
            [
                *(_formula_safe(value) for value in _plain(each)),
                *(_raw(metric.value(each)) for metric in METRICS),
            ]
        )
    return told.getvalue()


_PLAIN = (
    "model", "variant", "attention", "prompt_tokens_asked", "prompt_tokens", "round", "status", "reason", "isolation", "is_noisy",
    "is_bit_exact", "new_tokens", "divergence_position", "divergence_margin", "case_key",
)  # fmt: skip


def _plain(each: Measurement) -> list[Any]:
    case, found = each.case, each.divergence
    exact = all(agreement.is_bit_exact for agreement in each.agreements) if each.agreements else ""
    noisy = each.timing.is_noisy if each.timing else ""
    return [
        case.model, case.variant, case.attention, case.prompt_tokens, each.prompt_tokens or "", case.round, each.status,
        each.reason, each.isolation, noisy, exact, len(each.token_ids), "" if found is None else found.position,
        "" if found is None else _raw(found.margin), case.key,
    ]  # fmt: skip


def _raw(value: float | None) -> Any:
    return "" if value is None or math.isnan(value) else value


def _formula_safe(value: Any) -> Any:
    # a spreadsheet would run a text that begins like a formula
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
