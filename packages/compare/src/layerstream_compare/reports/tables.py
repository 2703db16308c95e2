"""Format rows as Markdown and as CSV. Figures and their titles come from `metrics`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..measurement import Measurement
from .memory_notes import notes_of, tier_lines
from .metric import Metric
from .metrics import METRICS, Row, measured, not_measured

GROUPS = {"memory": "Memory", "time": "Time", "quality": "Agreement with the exact reference"}
"""Headings of the groups of metrics."""


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown report: a table per group of figures, answers, failures and definitions."""
    parts = ["# One prompt, every variant\n", _prompt(rows)]
    for group, heading in GROUPS.items():
        metrics = measured(rows, group)
        good = [row for row in rows if any(metric.key in row.values for metric in metrics)]
        if good:
            table = _markdown_table(good, metrics, with_outcome=group == "quality")
            notes = [*tier_lines(rows), *notes_of(rows)] if group == "memory" else []
            parts.append(f"## {heading}\n\n{table}" + "".join(f"\n{_cell(note)}\n" for note in notes))
    answers = [
        f"### {row.label}\n\n{row.outcome()}\n\n{_fenced(row.shown.text)}"
        for row in rows
        if row.shown.status == "ok"
    ]
    if answers:
        parts.append("## Answers\n\n" + "\n".join(answers))
    missing = [f"- **{_cell(entry.names)}** {_cell(entry.outcome)}" for entry in not_measured(rows)]
    if missing:
        parts.append("## Not measured\n\n" + "\n".join(missing) + "\n")
    shown = [metric for group in GROUPS for metric in measured(rows, group)]
    parts.append(
        "## What each figure includes\n\n"
        + "\n".join(f"- **{metric.title}** {metric.includes}." for metric in shown)
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
        marks = [row.badge or "differs", row.outcome()] if with_outcome else ["yes" if row.is_noisy else ""]
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
    """Return one CSV line per measurement, in bytes, seconds, nats and shares; empty where not measured."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*_PLAIN, *(metric.key for metric in METRICS)])
    for measurement in measurements:
        writer.writerow(
            [
                *(_formula_safe(value) for value in _plain(measurement)),
                *(_raw(metric.value(measurement)) for metric in METRICS),
            ]
        )
    return output.getvalue()


_PLAIN = (
    "model", "variant", "attention", "prompt_tokens_requested", "prompt_tokens", "round", "status", "reason",
    "isolation", "is_noisy", "is_bit_exact", "new_tokens", "divergence_position", "divergence_margin",
    "case_key",
)  # fmt: skip


def _plain(measurement: Measurement) -> list[Any]:
    case, divergence, agreements = measurement.case, measurement.divergence, measurement.agreements
    exact = all(agreement.is_bit_exact for agreement in agreements) if agreements else ""
    noisy = measurement.timing.is_noisy if measurement.timing else ""
    position = "" if divergence is None else divergence.position
    margin = "" if divergence is None else _raw(divergence.margin)
    return [
        case.model, case.variant, case.attention, case.prompt_tokens, measurement.prompt_tokens or "",
        case.round, measurement.status, measurement.reason, measurement.isolation, noisy, exact,
        len(measurement.token_ids), position, margin, case.key,
    ]  # fmt: skip


def _raw(value: float | None) -> Any:
    return "" if value is None or math.isnan(value) else value


def _formula_safe(value: Any) -> Any:
    # a spreadsheet would execute text that begins like a formula
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
