"""Results to take along: links whose content is in the page itself, so that no file of a visitor lies on the server."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from layerstream_compare import Measurement, csv_report, html_report

NAME = "layerstream-compare"


def downloads_view(measurements: Sequence[Measurement]) -> str:
    """Return links to the results as JSON, CSV and a report page; nothing to click before there are any."""
    if not measurements:
        return '<p class="ls-downloads none">Results can be downloaded as JSON, CSV or a report page when a run is done.</p>'
    records = json.dumps([json.loads(each.to_json()) for each in measurements], indent=1, ensure_ascii=False)
    files = (
        ("JSON", "json", "application/json", records),
        ("CSV", "csv", "text/csv", csv_report(measurements)),
        ("Report", "html", "text/html", html_report(measurements)),
    )
    links = "".join(_link(*each) for each in files)
    return f'<p class="ls-downloads"><span>Take the results along:</span>{links}</p>'


def _link(title: str, ending: str, media: str, content: str) -> str:
    encoded = base64.b64encode(content.encode()).decode()
    return f'<a class="ls-link" download="{NAME}.{ending}" href="data:{media};charset=utf-8;base64,{encoded}">{title}</a>'
