"""Write a timeline to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import PlanError
from ..spec.timeline import Span
from .trace_export import gantt_html, gantt_svg, perfetto_json


def write_trace(spans: Sequence[Span], path: Path, *, model: str, subtitle: str = "") -> None:
    """Write `spans` of `model` to `path`, in the format of its suffix: `.json` (Perfetto), `.html` or `.svg`.

    Raises:
        PlanError: the suffix is another one, or the file cannot be written.
    """
    check_trace_path(path)
    title = f"layerstream: {Path(model).name}"
    if path.suffix == ".json":
        text = json.dumps(perfetto_json(spans, process_name=title))
    elif path.suffix == ".svg":
        text = gantt_svg(spans, label=title)
    else:
        text = gantt_html(spans, title=title, subtitle=subtitle)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot write the trace {path}: {error.strerror or error}") from error


def check_trace_path(path: Path) -> None:
    """Refuse a path that `write_trace` cannot write to, before anything slow runs.

    Raises:
        PlanError: the suffix is unknown or the directory does not exist.
    """
    if path.suffix not in (".json", ".html", ".svg"):
        raise PlanError(f"a trace is written as .json, .html or .svg, not {path.name!r}")
    if not path.parent.is_dir():
        raise PlanError(f"cannot write the trace {path}: there is no directory {path.parent}")
