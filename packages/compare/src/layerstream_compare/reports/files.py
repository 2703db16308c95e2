"""Create the reports of finished measurements: HTML, Markdown, CSV and drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..measurement import Measurement
from .memory_notes import has_device, notes_of, tier_lines
from .metrics import Row, rows_of
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

    The names are `memory`, `latency`, `divergence` and `lengths-<variant>`; on an accelerator `memory-device`
    and `memory-host` in place of `memory`. A drawing without data is omitted. Memory and latency show the
    first prompt length.
    """
    rows = rows_of(measurements)
    first = [row for row in rows if row.shown.case.prompt_tokens == rows[0].shown.case.prompt_tokens]
    memory = {"memory": memory_plot(first)}
    if has_device(rows):
        memory = {f"memory-{name}": memory_plot(first, memory=name) for name in ("device", "host")}
    drawn = {
        **memory,
        "latency": latency_plot(first),
        "divergence": divergence_plot(rows),
    }
    drawn |= {f"lengths-{variant}": drawing for variant, drawing in length_plots(rows)}
    return {name: standalone(drawing, PALETTE + DRAWING) for name, drawing in drawn.items() if drawing}


def memory_notes(measurements: Sequence[Measurement], titles: Mapping[str, str] | None = None) -> list[str]:
    """Return in words what streamed models keep in which memory, and why it is more than another variant's.

    Without an accelerator there is a note only where a streamed model takes more memory than a variant that
    it is compared with.

    Args:
        measurements: the cases of one experiment.
        titles: names of variants for the reader; by default cases have their labels.
    """
    rows = rows_of(measurements)

    def name_of(row: Row) -> str:
        return row.label if titles is None else titles.get(row.shown.case.variant, row.label)

    return [*tier_lines(rows, name_of), *notes_of(rows, name_of)]


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
