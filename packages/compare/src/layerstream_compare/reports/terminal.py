"""Fit the figures of rows to a terminal: one table if it is wide enough, else several below each other.

No figure is left out or cut: a narrow terminal gets more tables, not fewer columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .memory_notes import has_device, notes_of, tier_lines
from .metric import Metric
from .metrics import BY_KEY, TEXTS, Row, measured, not_measured

_MEMORY = ("held_bytes", "working_bytes", "load_spike_bytes")
_MEMORY_WITH_DEVICE = ("device_held_bytes", "device_peak_bytes", "host_held_bytes", "host_needed_bytes")
_TIME = ("first_token_s", "inter_token_median_s")
_QUALITY = ("kl_mean", "top1")
_GAP, _LEAST_LABEL, _LEAST_ANSWER = 2, 10, 18


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One column: its heading, and a cell for each row, None where the row has nothing to show."""

    heading: str
    cells: tuple[Text | None, ...]
    is_text: bool = False

    @property
    def width(self) -> int:
        """Width that it needs; the one with text wraps, and needs less than its longest cell."""
        lines = [*self.heading.split("\n"), *(cell.plain for cell in self.cells if cell is not None)]
        longest = max(map(cell_len, lines))
        return min(longest, _LEAST_ANSWER) if self.is_text else longest


def terminal_table(rows: Sequence[Row], *, width: int = 120) -> Group:
    """Return the figures as tables of at most `width` characters: memory, time, agreement and answer."""
    memory = _MEMORY_WITH_DEVICE if has_device(rows) else _MEMORY
    answers = _Column(heading="answer", cells=tuple(map(_outcome, rows)), is_text=True)
    groups = [
        [_figures(BY_KEY[key], rows) for key in memory],
        [_figures(BY_KEY[key], rows) for key in _TIME],
        [*_agreement(rows), answers],
    ]
    groups = [[column for column in group if any(column.cells)] for group in groups]
    labels = [row.label + (" (noisy)" if row.is_noisy else "") for row in rows]
    longest = max((cell_len(label) for label in labels), default=0)
    label_width = min(longest, max(_LEAST_LABEL, width // 3))
    tables = [_table(labels, columns, label_width) for columns in _packed(groups, width - label_width)]
    return Group(*[part for table in tables for part in ("", table)][1:])


def _figures(metric: Metric, rows: Sequence[Row], heading: str = "") -> _Column:
    values = [row.median_of(metric.key) for row in rows]
    return _Column(
        heading=heading or metric.title.replace(" ", "\n", 1),
        cells=tuple(None if value is None else Text(metric.show(value)) for value in values),
    )


def _agreement(rows: Sequence[Row]) -> list[_Column]:
    metrics = {metric.key: metric for metric in measured(rows, "quality")}
    found = [metrics[f"{key}_{text}"] for text in TEXTS for key in _QUALITY if f"{key}_{text}" in metrics]
    names_text = len(found) > len(_QUALITY)
    headings = [
        metric.title.replace(", ", "\n") if names_text else metric.title.partition(",")[0].replace(" ", "\n")
        for metric in found
    ]
    return [_figures(metric, rows, heading) for metric, heading in zip(found, headings, strict=True)]


def _packed(groups: Sequence[Sequence[_Column]], width: int) -> list[list[_Column]]:
    """Return the columns of each table: whole groups if they fit, a group that is too wide in parts."""
    tables: list[list[_Column]] = []
    for group in groups:
        if tables and _width(group) <= width - _width(tables[-1]):
            tables[-1] += group
            continue
        for number, column in enumerate(group):
            if not number or _width([column]) > width - _width(tables[-1]):
                tables.append([])
            tables[-1].append(column)
    return tables


def _width(columns: Iterable[_Column]) -> int:
    return sum(column.width + _GAP for column in columns)


def _table(labels: Sequence[str], columns: Sequence[_Column], label_width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    table.add_column("variant", overflow="fold", min_width=label_width, max_width=label_width)
    for column in columns:
        table.add_column(
            column.heading,
            justify="left" if column.is_text else "right",
            min_width=column.width,
            no_wrap=not column.is_text,
            overflow="fold",
        )
    for index, label in enumerate(labels):
        cells = [column.cells[index] for column in columns]
        if any(cells):
            table.add_row(Text(label), *(cell or Text("–", style="dim") for cell in cells))
    return table


def _outcome(row: Row) -> Text:
    """Return the outcome in a few words; reasons have their own lines below the table."""
    status, divergence = row.shown.status, row.shown.divergence
    if status != "ok":
        return Text(status, style="red" if status == "failed" else "dim")
    text = row.outcome()
    if divergence is not None:
        margin = "" if math.isnan(divergence.margin) else f" (margin {divergence.margin:.2g})"
        text = f"differs at token {divergence.position + 1}{margin}"
    return Text(f"{text}, {row.badge}" if row.badge else text, style="green" if row.is_bit_exact else "")


def terminal_notes(rows: Sequence[Row]) -> list[Text]:
    """Return lines below the table: what was not measured and why, and notes about streamed memory."""
    missing = [f"{entry.names}: {entry.outcome}" for entry in not_measured(rows)]
    return [Text(line) for line in (*missing, *tier_lines(rows), *notes_of(rows))]
