"""Traces contain every span with its length, and load nothing from outside."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.cli.trace_export import gantt_html, gantt_svg, perfetto_json
from layerstream.spec.timeline import Activity, Span


def span(
    activity: Activity, start_s: float, end_s: float, *, unit: int = 0, sweep: int = 0, num_bytes: int = 0
) -> Span:
    return Span(
        activity=activity,
        unit=f"model.layers.{unit}",
        unit_index=unit,
        sweep=sweep,
        start_s=start_s,
        end_s=end_s,
        num_bytes=num_bytes,
    )


PIPELINE = (
    span(Activity.READ, 100.0, 100.4, num_bytes=2**20),
    span(Activity.READ, 100.2, 100.6, unit=1, num_bytes=2**20),
    span(Activity.COPY, 100.4, 100.5, num_bytes=2**20),
    span(Activity.WAIT, 100.0, 100.5),
    span(Activity.COMPUTE, 100.5, 101.0),
    span(Activity.COMPUTE, 101.0, 101.5, unit=1),
    span(Activity.COMPUTE, 101.5, 102.0, sweep=1),
)
SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def any_spans(draw: st.DrawFn) -> list[Span]:
    times = st.floats(min_value=0, max_value=1e5, allow_nan=False)
    spans = []
    for _ in range(draw(st.integers(0, 40))):
        start_s = draw(times)
        spans.append(
            span(
                draw(st.sampled_from(list(Activity))),
                start_s,
                start_s + draw(times),
                unit=draw(st.integers(0, 9)),
                num_bytes=7,
            )
        )
    return spans


def complete_events(trace: dict[str, object]) -> list[dict[str, object]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_every_span_is_an_event_in_microseconds_from_the_first_one() -> None:
    events = complete_events(json.loads(json.dumps(perfetto_json(PIPELINE))))
    assert len(events) == len(PIPELINE)
    assert min(event["ts"] for event in events) == 0
    copy = next(event for event in events if event["cat"] == "copy")
    assert (copy["ts"], copy["dur"]) == (pytest.approx(400_000), pytest.approx(100_000))
    assert copy["args"] == {"sweep": 0, "unit_index": 0, "num_bytes": 2**20, "replica": 0}


@given(any_spans())
def test_events_of_one_track_never_overlap(spans: list[Span]) -> None:
    events = complete_events(perfetto_json(spans))
    assert len(events) == len(spans)
    for track in {event["tid"] for event in events}:
        own = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["tid"] == track)
        assert all(following[0] >= previous[1] - 0.01 for previous, following in pairwise(own))


def test_overlapping_reads_are_on_two_named_tracks() -> None:
    names = [
        event["args"]["name"]
        for event in perfetto_json(PIPELINE)["traceEvents"]
        if event["name"] == "thread_name"
    ]
    assert names == ["read 1", "read 2", "copy", "wait", "compute"]


@given(any_spans())
def test_the_chart_is_well_formed_and_every_span_lies_inside_it(spans: list[Span]) -> None:
    root = ET.fromstring(gantt_svg(spans, width_px=800))
    drawn = [each for each in root.iter(f"{SVG}rect") if "span" in each.get("class", "").split()]
    assert len(drawn) == len(spans)
    for each in drawn:
        assert float(each.get("x")) >= 0
        assert float(each.get("x")) + float(each.get("width")) <= 800


def test_a_bars_title_has_block_sweep_length_bytes_and_rate() -> None:
    titles = [each.text for each in ET.fromstring(gantt_svg(PIPELINE)).iter(f"{SVG}title")]
    assert "read model.layers.0 · sweep 0 · 400.00 ms · 1 MiB · 0.00 GB/s" in titles
    assert "compute model.layers.0 · sweep 1 · 500.00 ms" in titles


def test_tracks_without_spans_are_left_out() -> None:
    root = ET.fromstring(gantt_svg([each for each in PIPELINE if each.activity is not Activity.COPY]))
    assert [each.text for each in root.iter(f"{SVG}text") if each.get("class") == "track"] == [
        "read",
        "wait",
        "compute",
    ]


def test_without_spans_chart_and_trace_are_empty() -> None:
    ET.fromstring(gantt_svg([]))
    assert complete_events(perfetto_json([])) == []
    assert "<svg" in gantt_html([], title="nothing")


def test_the_page_loads_nothing_from_outside() -> None:
    page = gantt_html(PIPELINE, title="a run")
    outside = [
        url
        for url in re.findall(r"(?:https?:)?//[\w.]+[^\"'\s<)]*", page)
        if "www.w3.org/2000/svg" not in url
    ]
    assert outside == []
    assert "<script" not in page
    assert "prefers-color-scheme:dark" in page


def test_names_are_escaped_in_the_page() -> None:
    nasty = Span(
        activity=Activity.READ, unit="<script>x</script>", unit_index=0, sweep=0, start_s=0.0, end_s=1.0
    )
    page = gantt_html([nasty], title="</title><script>", subtitle="<b>")
    assert "<script>" not in page
    assert "<b>" not in page


def test_the_legend_counts_overlapping_reads_once() -> None:
    page = gantt_html(PIPELINE, title="a run")
    row = re.search(r"<tr><td><span class=\"key read\">.*?</tr>", page)
    assert row is not None
    assert "<td>2</td><td>600 ms</td><td>30 %</td><td>2 MiB</td>" in row.group()
