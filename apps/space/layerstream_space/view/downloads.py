"""Links to download the results. They hold the content themselves, so the server keeps no visitor's file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from layerstream_compare import Measurement, csv_report, html_report

NAME = "layerstream-compare"


def downloads_view(measurements: Sequence[Measurement]) -> str:
    """Return links to the results as JSON, CSV and a report; a note if there are none yet."""
    if not measurements:
        return (
            '<p class="ls-downloads none">When a run is done, you can download the results as JSON, CSV or '
            "a report.</p>"
        )
    records = json.dumps([json.loads(each.to_json()) for each in measurements], indent=1, ensure_ascii=False)
    links = (
        _link("JSON", "json", "application/json", records),
        _link("CSV", "csv", "text/csv", csv_report(measurements)),
        _link("Report", "html", "text/html", html_report(measurements)),
    )
    return f'<p class="ls-downloads"><span>Download the results:</span>{"".join(links)}</p>'


def _link(title: str, extension: str, media_type: str, content: str) -> str:
    encoded = base64.b64encode(content.encode()).decode()
    return (
        f'<a class="ls-link" download="{NAME}.{extension}" '
        f'href="data:{media_type};charset=utf-8;base64,{encoded}">'
        f"{title}</a>"
    )
