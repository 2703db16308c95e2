"""Create the reports of finished measurements: HTML, Markdown, CSV and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..measurement import Measurement
from .metrics import rows_of
from .page import html_page
from .page_style import DRAWING, PALETTE
from .plots import divergence_plot, latency_plot, length_plots, memory_plot
from .svg import standalone
from .tables import csv_text, markdown

FILES = ("report.html", "report.md", "results.csv")
"""Files that `write_reports` writes next to the results."""


def html_report(measurements: Sequence[Measurement]) -> str:
    """Return a standalone HTML page with tables, drawings and answers; it makes no network requests."""
    return html_page(rows_of(measurements))


def csv_report(measurements: Sequence[Measurement]) -> str:
    """Return one CSV line per measurement, in bytes, seconds, nats and shares; empty where not measured."""
    return csv_text(measurements)


def drawings(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return the report's drawings as SVG text, by name.

    The names are `memory`, `latency`, `divergence` and `lengths-<variant>`; a drawing without data is
    omitted. Memory and latency show the first prompt length.
    """
    rows = rows_of(measurements)
    first = [row for row in rows if row.shown.case.prompt_tokens == rows[0].shown.case.prompt_tokens]
    drawn = {
        "memory": memory_plot(first),
        "latency": latency_plot(first),
        "divergence": divergence_plot(rows),
    }
    drawn |= {f"lengths-{variant}": drawing for variant, drawing in length_plots(rows)}
    return {name: standalone(drawing, PALETTE + DRAWING) for name, drawing in drawn.items() if drawing}


def write_reports(measurements: Sequence[Measurement], folder: str | Path) -> tuple[Path, ...]:
    """Write HTML, Markdown and CSV into `folder`, replacing older reports, and return the paths.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    texts = (html_report(measurements), markdown(rows_of(measurements)), csv_text(measurements))
    paths = tuple(target / name for name in FILES)
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
