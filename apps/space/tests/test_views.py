"""Views are pure: they show exactly what they are given, escaped."""

from __future__ import annotations

import base64
import json
import re
from html import escape
from html.parser import HTMLParser

import pytest
import sample_values

from layerstream import format_bytes, format_seconds
from layerstream_compare import METRICS
from layerstream_space.documents import NAMES, read_documents
from layerstream_space.host_info import HostInfo
from layerstream_space.run_state import RunState
from layerstream_space.timeline_state import TimelineState
from layerstream_space.view.bars import plots_view
from layerstream_space.view.columns import (
    AGREEMENT,
    COSTS,
    COSTS_WITH_DEVICE,
    columns_view,
    empty_columns,
)
from layerstream_space.view.curves import curves_view
from layerstream_space.view.documents import documents_view
from layerstream_space.view.downloads import downloads_view
from layerstream_space.view.how_to_read import how_to_read_columns
from layerstream_space.view.pages import STEPS, masthead, method_view
from layerstream_space.view.plan import ledger_bar, strip_view
from layerstream_space.view.timeline import watch_view

STREAMED, NF4 = sample_values.case("streamed"), sample_values.case("bnb-nf4")
EVIL = '<script>alert("x")</script>'


class Balance(HTMLParser):
    """A parser that fails when a closing tag does not match the open one."""

    VOID = ("path", "rect", "circle", "polygon", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(html: str) -> str:
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    return html


def done_state(**nf4: object) -> RunState:
    state = RunState([STREAMED, NF4], STREAMED)
    state.apply(sample_values.finished(sample_values.measurement(STREAMED)), 0.0)
    state.apply(sample_values.finished(sample_values.measurement(NF4, **nf4)), 1.0)
    return state


def test_first_different_token_is_marked_and_the_rest_is_tinted():
    html = checked(columns_view(done_state(ids=(1, 7, 3), texts=("The", " sea", " was")), 2.0))
    assert re.search(r"The<mark [^>]*>.*sea.*</mark><span class=\"ls-after\"> was</span>", html)
    assert "margin of 0.02" in html
    assert "coin flip" in html
    assert "differs from token" in html


def test_equal_answers_are_reported_and_nothing_is_marked():
    html = checked(columns_view(done_state(), 2.0))
    assert "<mark" not in html
    assert "same answer as the reference" in html
    assert "1 of 1 other columns" in html


def test_shorter_answer_says_where_it_ends():
    assert "(ends here)" in columns_view(done_state(ids=(1,), texts=("The",)), 2.0)


def test_column_has_every_figure_and_one_place_explains_them_all():
    html, explained = checked(columns_view(done_state(), 2.0)), checked(how_to_read_columns(has_device=False))
    for key, name in (*COSTS, *AGREEMENT):
        metric = next(metric for metric in METRICS if metric.key == key)
        assert f"<dt>{name}</dt>" in html
        assert metric.show(metric.value(sample_values.measurement(STREAMED))) in html
        assert f"<dt>{name}</dt><dd>{escape(metric.includes)}.</dd>" in explained
    assert html.count("<dt>") == 2 * len((*COSTS, *AGREEMENT))
    assert 'class="ls-q"' not in html


def test_reference_bit_exact_and_noisy_columns_have_badges():
    state = RunState([STREAMED, NF4], STREAMED)
    state.apply(
        sample_values.finished(
            sample_values.measurement(STREAMED, timing=sample_values.timing(is_noisy=True))
        ),
        0.0,
    )
    state.apply(
        sample_values.finished(
            sample_values.measurement(NF4, agreements=(sample_values.agreement(is_bit_exact=False),))
        ),
        0.0,
    )
    html = columns_view(state, 1.0)
    for badge, count in (("bit-exact", 1), (">reference<", 1), (">noisy<", 1)):
        assert html.count(badge) == count


@pytest.mark.parametrize("status", ["failed", "unavailable"])
def test_column_without_a_result_gives_the_reason(status):
    html = checked(columns_view(done_state(status=status, reason=EVIL, ids=(), texts=()), 1.0))
    assert "&lt;script&gt;" in html
    assert EVIL not in html


def test_running_column_shows_its_phase_and_seconds():
    state = RunState([STREAMED, NF4], STREAMED)
    state.apply(sample_values.event(STREAMED, "started"), 10.0)
    state.apply(sample_values.event(STREAMED, "phase", phase="load"), 11.0)
    html = checked(columns_view(state, 14.9))
    assert "1 of 2: <b>Streamed</b>, loading the weights, 4 s<em> · about " in html
    assert "waiting for its turn" in html


def test_model_output_is_escaped_everywhere():
    html = checked(columns_view(done_state(ids=(1, 7, 3), texts=(EVIL, EVIL, EVIL)), 1.0))
    assert EVIL not in html


def test_columns_keep_their_height_from_before_the_first_word_to_the_last():
    lines = [
        re.search(r"--lines:(\d+)", html)[1]
        for html in (empty_columns(["streamed"], 8), columns_view(done_state(), 1.0))
    ]
    assert lines[0] == lines[1]


def test_memory_bars_are_drawn_to_scale_with_the_budget_line():
    html = checked(plots_view([sample_values.measurement(STREAMED), sample_values.measurement(NF4)]))
    most = (120 + 60) * 1.04
    assert f"width:{120 / most * 100:.2f}%" in html
    assert f"--at:{100 / most * 100:.2f}%" in html
    assert "budget 100 MiB" in html


def on_device(*variants: str) -> list:
    return [sample_values.on_device(sample_values.case(name)) for name in variants]


def test_memory_bars_of_a_device_and_of_the_host_are_apart_each_to_its_own_scale():
    html = checked(plots_view(on_device("streamed", "bnb-nf4")))
    device, host = re.findall(
        r"<h4>(.*?)</h4><div class=\"ls-bars has-budget\">(.*?)</span></div></div>", html
    )[:2]
    assert device[0].startswith("On the device")
    assert host[0].startswith("In host memory")
    for (_, bars), held, most, budget in ((device, 60, 112 + 26, 100), (host, 84, 84 + 12, 84)):
        assert f'<i class="held" style="width:{held / (most * 1.04) * 100:.2f}%">' in bars
        assert f"--at:{budget / (most * 1.04) * 100:.2f}%" in bars
        assert f"budget {budget} MiB" in bars
    assert "Streamed on the device: 60 MiB weights, 26 MiB working memory" in device[1]
    assert "Streamed in host memory: 84 MiB weights, 12 MiB working memory" in host[1]
    # the files that loading maps would dwarf everything else
    assert "spike" not in html


def test_plots_say_why_the_streamed_model_takes_more_of_a_memory():
    html = checked(plots_view(on_device("streamed", "resident", "bnb-nf4")))
    assert (
        "“Streamed” holds 84 MiB of host memory, more than “In memory” (0 B) and “4-bit NF4” (2 MiB)" in html
    )
    assert "a sweep reads 210 MiB from disk and copies 210 MiB to the device" in html
    smaller = [sample_values.measurement(STREAMED), sample_values.measurement(NF4)]
    assert "ls-note" not in plots_view(smaller)


def test_columns_of_a_device_have_figures_of_both_memories():
    state = RunState([STREAMED, NF4], STREAMED)
    state.apply(sample_values.finished(sample_values.on_device(STREAMED)), 0.0)
    html = checked(columns_view(state, 1.0))
    for key, name in (*COSTS_WITH_DEVICE, *AGREEMENT):
        metric = next(metric for metric in METRICS if metric.key == key)
        assert f"<dt>{name}</dt>" in html
        assert metric.show(metric.value(sample_values.on_device(STREAMED))) in html
    # a column that still waits has the same rows
    assert html.count("<dt>") == 2 * len((*COSTS_WITH_DEVICE, *AGREEMENT))


def test_plots_say_what_will_appear_before_anything_is_measured():
    failed = sample_values.measurement(STREAMED, status="failed", memory=None, timing=None)
    assert plots_view([failed]) == plots_view([])
    assert "Bars appear" in checked(plots_view([]))


def test_downloads_contain_the_results_themselves():
    found = sample_values.measurement(STREAMED)
    links = dict(
        re.findall(
            r'download="[^"]+\.(\w+)" href="data:[^,]+;base64,([^"]+)"', checked(downloads_view([found]))
        )
    )
    assert set(links) == {"json", "csv", "html"}
    records = json.loads(base64.b64decode(links["json"]))
    assert records == [json.loads(found.to_json())]
    assert base64.b64decode(links["html"]).startswith(b"<!doctype html>")
    assert "href" not in downloads_view([])


def test_plan_has_a_cell_for_each_block_filled_by_where_it_lives():
    html = checked(strip_view(sample_values.plan("D.H."), current_unit=2))
    assert html.count('class="ls-cell') == 4
    assert html.count('class="ls-cell now"') == 1
    assert html.count('class="device" style="height:100.00%"') == 1
    assert html.count('class="host" style="height:100.00%"') == 1
    assert f"on disk: 2 of 4, {format_bytes(16 * sample_values.MIB)}" in html


def test_ledger_bar_names_its_parts():
    html = checked(ledger_bar(sample_values.plan()))
    assert f"slots {format_bytes(16 * sample_values.MIB)}" in html
    peak, budget = format_bytes(28 * sample_values.MIB), format_bytes(64 * sample_values.MIB)
    assert f"predicted peak {peak} of {budget}" in html


def test_ledger_of_a_device_has_a_bar_for_each_memory_and_that_of_a_cpu_one():
    html = checked(ledger_bar(sample_values.plan("D.H.")))
    assert html.index("On the device") < html.index("In host memory")
    assert f"blocks in host memory {format_bytes(8 * sample_values.MIB)}" in html
    assert f"predicted peak {format_bytes(8 * sample_values.MIB)} of" in html
    html = checked(ledger_bar(sample_values.plan("D..")))
    assert html.count('class="ls-stack"') == 1
    assert "In host memory" not in html


def sample_timeline() -> TimelineState:
    timeline = TimelineState()
    timeline.apply(sample_values.event(STREAMED, "plan", plan=sample_values.plan().to_dict()))
    spans = [["read", 1, 0, 0.0, 0.05, 8 * sample_values.MIB]]
    for sweep in range(4):
        spans += [
            ["wait", 1, sweep, sweep + 0.1, sweep + 0.2, 0],
            ["compute", 1, sweep, sweep + 0.2, sweep + 0.9, 0],
        ]
    timeline.apply(sample_values.event(STREAMED, "spans", spans=spans))
    return timeline


def test_timeline_sums_reads_and_waits_and_averages_the_sweep_time():
    timeline = sample_timeline()
    assert (timeline.bytes_read, timeline.current_unit) == (8 * sample_values.MIB, 1)
    assert timeline.sweep_s() == pytest.approx(1.0)
    assert timeline.seconds["wait"] == pytest.approx(0.4)


def test_timeline_draws_the_last_sweeps_and_describes_them_in_words():
    html = checked(watch_view(sample_timeline(), ["Once", " upon"], "writing", is_over=True))
    assert "Once upon" in html
    assert html.count('<svg class="compute"') == 1
    assert f"waiting for weights {format_seconds(0.4)}" in html
    assert "/home" not in html
    # the window is a little longer than two sweeps
    computing = re.search(r'<svg class="compute".*?</svg>', html)[0]
    assert computing.count("<rect") in (2, 3)


def test_idle_timeline_draws_nothing_and_says_what_to_do():
    html = checked(watch_view(TimelineState(), [], "Run it", is_over=False))
    assert "<rect" not in html
    assert "Run it" in html


def test_spans_of_the_warm_up_are_left_out():
    timeline = TimelineState()
    timeline.apply(sample_values.event(STREAMED, "spans", spans=[["read", 1, 0, -2.0, -1.0, 5]]))
    assert timeline.bytes_read == 0


def test_column_and_bar_show_the_same_peak_without_mapped_files():
    state = done_state()
    column, bars = columns_view(state, 2.0), plots_view(state.measurements)
    for needed in ("110 MiB", "180 MiB"):
        assert f"<dd>{needed}</dd>" in column
        assert f'<span class="ls-number">{needed}</span>' in bars


def test_curves_have_a_point_for_each_length_and_text_for_screen_readers():
    found = [
        sample_values.measurement(sample_values.case("resident", attention=attention, prompt_tokens=length))
        for attention in ("eager", "sdpa")
        for length in (512, 1024)
    ]
    html = checked(curves_view(found, "Done"))
    assert html.count("<polyline") == 4
    assert html.count("<title>") == 8
    assert "512 tokens" in html


def test_masthead_names_model_and_machine():
    html = checked(masthead(["tiny", "other"], HostInfo(cores=2, memory_bytes=16 * 1024**3, has_gpu=False)))
    for fact in ("tiny and 1 more", "2 CPU cores", f"{format_bytes(16 * 1024**3)} memory", "no GPU"):
        assert fact in html


def test_method_page_explains_every_figure():
    html = checked(method_view({}, []))
    assert all(metric.title in html for metric in METRICS)
    assert "<a " not in html


def test_method_page_links_into_the_documents_on_the_page():
    documents = read_documents()
    assert list(documents) == list(NAMES)
    html = checked(method_view(documents, []))
    targets = re.findall(r'href="([^"]*)"', html)
    assert len(targets) > len(STEPS)
    missing = [target for target in targets if f'id="{target.removeprefix("#")}"' not in html]
    assert missing == []


def test_link_off_the_page_becomes_plain_text():
    html = checked(
        documents_view(
            {"one": "# One\n## A, b\nSee [two](two.md), [me](one.md#a-b) and [code](../code.py). <b>&</b>"}
        )
    )
    assert 'See two, <a href="#doc-one-a-b">me</a> and code. &lt;b&gt;&amp;' in html
    assert '<h4 id="doc-one-a-b">A, b</h4>' in html
