"""The reports of finished measurements, each in one call: files in a folder, or one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..measurement import Measurement
from .metrics import rows_of
from .page import html_page
from .page_style import DRAWING, PALETTE
from .plots import divergence_plot, latency_plot, memory_plot, sweep_plots
from .svg import standalone
from .tables import csv_text, markdown

FILES = ("report.html", "report.md", "results.csv")
"""What `write_reports` writes, beside the results themselves."""


def html_report(measurements: Sequence[Measurement]) -> str:
    """Return the standalone HTML page: tables, drawings and answers; it asks the network for nothing."""
    return html_page(rows_of(measurements))


def csv_report(measurements: Sequence[Measurement]) -> str:
    """Return one line a measurement: bytes, seconds, nats and shares as plain numbers, empty where not measured."""
    return csv_text(measurements)


def drawings(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return the report's drawings as SVG files' texts, by name: memory, latency, divergence, and a length sweep each variant.

    A drawing for which nothing was measured is left out. Of several prompt lengths the first is drawn, but in the sweeps.
    """
    rows = rows_of(measurements)
    first = [row for row in rows if row.shown.case.prompt_tokens == rows[0].shown.case.prompt_tokens]
    found = {
        "memory": memory_plot(first),
        "latency": latency_plot(first),
        "divergence": divergence_plot(rows),
    }
    found |= {f"lengths-{variant}": drawing for variant, drawing in sweep_plots(rows)}
    return {name: standalone(drawing, PALETTE + DRAWING) for name, drawing in found.items() if drawing}


def write_reports(measurements: Sequence[Measurement], folder: str | Path) -> tuple[Path, ...]:
    """Write HTML, Markdown and CSV into `folder`, replacing what is there, and return the paths.

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
