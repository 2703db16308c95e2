from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from fake_workers import AGREEMENT, MEMORY, TIMING, result
from rich.console import Console

from layerstream_compare.case import Case
from layerstream_compare.measurement import SCHEMA_VERSION, Divergence, Measurement
from layerstream_compare.protocol import measurement_of
from layerstream_compare.reports.files import FILES, drawings, html_report, write_reports
from layerstream_compare.reports.metrics import METRICS, rows_of
from layerstream_compare.reports.page import html_page
from layerstream_compare.reports.plots import divergence_plot, latency_plot, length_plots, memory_plot
from layerstream_compare.reports.tables import csv_text, markdown
from layerstream_compare.reports.terminal import terminal_notes, terminal_table

MIB = 1024**2
HOSTILE = "<script>alert(1)</script> | `x` & \"quoted\" 'text' ```` </pre> =1+1"


def measured(variant: str = "resident", **changes) -> Measurement:
    case_fields = {
        name: changes.pop(name)
        for name in ("attention", "prompt_tokens", "round", "prompt")
        if name in changes
    }
    case = Case(**({"model": "some/model", "variant": variant, "prompt": "Hello"} | case_fields))
    found = measurement_of(case, {"kind": "result", **result(**changes)}, isolation="process")
    assert found.status == "ok", found.reason
    return found


def failed(variant: str, status: str = "failed") -> Measurement:
    return Measurement(
        case=Case(model="some/model", variant=variant, prompt="Hello"),
        status=status,
        reason=HOSTILE,
        stderr_tail=HOSTILE,
    )


def empty(variant: str) -> Measurement:
    return Measurement(case=Case(model="some/model", variant=variant, prompt="Hello"), status="ok")


def every_kind_of_result() -> list[Measurement]:
    exact = (
        AGREEMENT | {name: 0.0 for name in AGREEMENT if "kl" in name} | {"is_bit_exact": True, "top1": 1.0}
    )
    odd = AGREEMENT | {"kl_mean": math.inf, "kl_max": math.inf, "reverse_kl_mean": math.nan, "text": "prose"}
    different = Divergence(position=1, reference_token="<b>", variant_token=HOSTILE, margin=math.nan)
    return [
        measured("streamed", agreements=[exact], facts={"answer_compared_with": "resident"}),
        measured(
            "bnb-int8",
            agreements=[AGREEMENT, odd],
            text=HOSTILE,
            token_texts=["a", HOSTILE, "c"],
            divergence=asdict(different),
        ),
        measured(
            "resident", prompt=HOSTILE, facts={"plan": HOSTILE, "nested": {"<a>": [1]}, "margins": [0.5]}
        ),
        measured("bnb-nf4", memory=None, agreements=[], token_texts=[], token_ids=[]),
        measured("bnb-fp4", timing=None),
        measured("bnb-nf4-dq", timing=dict.fromkeys(TIMING, 0.0) | {"is_noisy": True}),
        failed("torchao-int8"),
        failed("autoround-int2", "unavailable"),
        empty("autoround-int3"),
    ]


class Page(HTMLParser):
    """Collect the elements and text that a browser would see."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_with_every_kind_of_result_is_well_formed_and_escapes_model_output():
    page = Page(html_report(every_kind_of_result()))
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert page.tags.count("svg") == 3


def test_the_page_makes_no_requests_and_runs_no_scripts():
    page = Page(html_report(every_kind_of_result()))
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "onload", "onclick", "srcset"}
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "@import" not in page.text
    assert "url(" not in page.text


def test_every_figure_on_the_page_says_what_it_includes():
    page = Page(html_report(every_kind_of_result()))
    titles = [value for name, value in page.attributes if name == "title"]
    for metric in METRICS:
        if any(metric.key in row.values for row in rows_of(every_kind_of_result())):
            assert metric.includes in titles, metric.key


@pytest.mark.parametrize(
    "measurements",
    [[], [failed("resident")], [empty("resident")], every_kind_of_result()],
    ids=["none", "failed", "empty", "all"],
)
def test_every_report_renders_with_missing_values(measurements, tmp_path):
    paths = write_reports(measurements, tmp_path / "new")
    assert [path.name for path in paths] == list(FILES)
    rows = rows_of(measurements)
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(rows))
    Page(html_page(rows))


@pytest.mark.parametrize("draw", [memory_plot, latency_plot, divergence_plot])
def test_each_drawing_is_well_formed_and_names_every_measured_variant(draw):
    drawing = draw(rows_of(every_kind_of_result()))
    words = "".join(ElementTree.fromstring(drawing).itertext())
    assert "streamed" in words
    assert "torchao-int8" not in words
    assert draw([]) == ""


def test_memory_bars_are_proportional_to_their_figures():
    small = measured(
        "bnb-nf4", memory=MEMORY | {"held_bytes": 100 * MIB, "peak_over_baseline_bytes": 150 * MIB}
    )
    large = measured(
        "resident", memory=MEMORY | {"held_bytes": 200 * MIB, "peak_over_baseline_bytes": 400 * MIB}
    )
    root = ElementTree.fromstring(memory_plot(rows_of([large, small])))
    bars = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("height") == "14"]
    held_large, working_large, held_small, working_small = [float(bar.get("width")) for bar in bars]
    assert held_large == pytest.approx(2 * held_small, rel=0.01)
    assert working_large == pytest.approx(held_large, rel=0.01)
    assert working_small == pytest.approx(held_small / 2, rel=0.01)


def test_the_length_plot_has_a_line_per_attention_variant_and_needs_two_lengths():
    phases = [
        {"phase": "load", "anonymous_bytes": 50 * MIB, "file_bytes": 0, "peak_bytes": 0},
        {"phase": "warm-up", "anonymous_bytes": 50 * MIB, "file_bytes": 50 * MIB, "peak_bytes": 0},
        {"phase": "first-token", "anonymous_bytes": 0, "file_bytes": 0, "peak_bytes": 164 * MIB},
    ]
    found = [
        measured(attention=attention, prompt_tokens=length, memory=MEMORY | {"phases": phases})
        for attention in ("eager", "sdpa")
        for length in (512, 1024, 4096)
    ]
    ((variant, drawing),) = length_plots(rows_of(found))
    assert variant == "resident"
    root = ElementTree.fromstring(drawing)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 4  # two panels
    assert all(len(line.get("points").split()) == 3 for line in lines)
    assert "64 MiB" in drawing
    assert length_plots(rows_of(found[:1])) == []


def test_pages_of_a_mapped_checkpoint_are_not_working_memory():
    phase = {"anonymous_bytes": 0, "peak_bytes": 0}
    phases = [
        {"phase": name, "file_bytes": size * MIB, **phase}
        for name, size in (("import", 80), ("load", 300), ("decode", 360))
    ]
    sizes = {"held_bytes": 100 * MIB, "mapped_held_bytes": 50 * MIB, "peak_over_baseline_bytes": 370 * MIB}
    (row,) = rows_of([measured(memory=MEMORY | sizes | {"phases": phases})])
    assert row.median_of("mapped_bytes") == 230 * MIB
    assert row.median_of("working_bytes") == 40 * MIB
    assert row.median_of("needed_bytes") == row.median_of("held_bytes") + 40 * MIB
    assert row.median_of("peak_over_baseline_bytes") == 370 * MIB


def test_on_an_accelerator_working_memory_comes_from_its_allocator():
    phases = [
        {
            "phase": "decode",
            "anonymous_bytes": 0,
            "file_bytes": 0,
            "peak_bytes": 0,
            "device_allocated_bytes": 90 * MIB,
        }
    ]
    on_device = {
        "held_bytes": 100 * MIB,
        "device_held_bytes": 60 * MIB,
        "peak_over_baseline_bytes": 500 * MIB,
        "phases": phases,
    }
    (row,) = rows_of([measured(memory=MEMORY | on_device)])
    assert row.median_of("working_bytes") == 30 * MIB
    assert row.median_of("device_peak_bytes") == 90 * MIB


def test_each_drawing_is_a_standalone_file_with_its_own_style():
    found = drawings(every_kind_of_result())
    assert list(found) == ["memory", "latency", "divergence"]
    for text in found.values():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        assert "prefers-color-scheme: dark" in "".join(root.itertext())
    assert drawings([]) == {}


def test_rounds_of_one_case_are_one_row_with_median_and_range():
    rounds = [
        measured(round=number, timing=TIMING | {"first_token_s": seconds})
        for number, seconds in enumerate((0.3, 0.1, 0.2))
    ]
    (row,) = rows_of(rounds)
    metric = next(metric for metric in METRICS if metric.key == "first_token_s")
    assert row.text_of(metric) == "200 ms (100 ms … 300 ms)"
    assert row.median_of("held_bytes") == MEMORY["held_bytes"]


def test_a_failed_round_does_not_hide_successful_ones():
    bad = Measurement(case=measured(round=0).case, status="failed", reason="crashed")
    (row,) = rows_of([bad, measured(round=1)])
    assert row.shown.status == "ok"
    assert row.median_of("load_s") == 1.5


def test_a_reason_that_several_cases_share_is_given_once_with_their_names():
    rows = rows_of([failed("resident"), failed("bnb-nf4"), failed("bnb-int8", "unavailable")])
    notes = [note.plain for note in terminal_notes(rows)]
    assert notes == [f"resident, bnb-nf4: failed: {HOSTILE}", f"bnb-int8: unavailable: {HOSTILE}"]
    assert "- **resident, bnb-nf4** failed: " in markdown(rows)
    assert Page(html_page(rows)).text.count("failed: ") == 1


def test_the_csv_has_one_line_per_measurement_with_plain_numbers_and_no_formulas():
    lines = list(csv.DictReader(io.StringIO(csv_text([measured("resident"), failed("bnb-nf4")]))))
    assert lines[0]["held_bytes"] == str(MEMORY["held_bytes"])
    assert float(lines[0]["kl_mean_answer"]) == 0.02
    assert lines[1]["held_bytes"] == ""
    assert lines[1]["reason"] == HOSTILE
    formula = Measurement(case=Case(model="=cmd()", variant="resident"), status="failed", reason="x")
    assert next(csv.DictReader(io.StringIO(csv_text([formula]))))["model"] == "'=cmd()"


def test_markdown_tables_keep_their_columns_with_any_model_output():
    text = markdown(rows_of(every_kind_of_result()))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| variant")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    fence = max((line for line in text.splitlines() if set(line) == {"`"}), key=len)
    assert len(fence) == 5  # longer than the four backticks in the answer


def test_outcomes_are_described_in_words():
    exact, quantized = rows_of(every_kind_of_result())[:2]
    assert exact.is_bit_exact
    assert exact.outcome() == "same as resident"
    assert not quantized.is_bit_exact
    assert rows_of([empty("resident")])[0].outcome() == "–"
    found = Divergence(position=3, reference_token=" def", variant_token="!", margin=0.004)
    row = rows_of([Measurement(case=Case(model="m", variant="v"), status="ok", divergence=found)])[0]
    assert row.outcome() == "token 4: '!', not ' def', margin 0.004"


def test_the_original_weights_with_another_kernel_are_marked_as_the_noise_floor():
    floor = measured("streamed", attention="eager", agreements=[AGREEMENT])
    exact, quantized, row = rows_of([*every_kind_of_result()[:2], floor])
    assert [shown.badge for shown in (exact, quantized, row)] == ["bit-exact", "", "noise floor"]
    assert "noise floor" in html_report([floor])
    assert "noise floor" in divergence_plot([row])
    assert "noise floor" in markdown([row])


def test_a_measurement_survives_a_round_trip_through_json():
    for measurement in every_kind_of_result():
        line = measurement.to_json()
        assert "\n" not in line
        assert json.loads(line)["schema_version"] == SCHEMA_VERSION
        again = Measurement.from_json(line)
        assert again.to_json() == line
