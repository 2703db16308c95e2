"""The reports of finished measurements, each in one call: files in a folder, or one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..measurement import Measurement
from .metrics import rows_of
from .page import html_page
from .tables import csv_text, markdown

FILES = ("report.html", "report.md", "results.csv")
"""What `write_reports` writes, beside the results themselves."""


def html_report(measurements: Sequence[Measurement]) -> str:
    """Return the standalone HTML page: tables, drawings and answers; it asks the network for nothing."""
    return html_page(rows_of(measurements))


def csv_report(measurements: Sequence[Measurement]) -> str:
    """Return one line a measurement: bytes, seconds, nats and shares as plain numbers, empty where not measured."""
    return csv_text(measurements)


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
