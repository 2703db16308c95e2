from __future__ import annotations

import io
from dataclasses import asdict

import pytest
from device_results import default_table
from fake_workers import AGREEMENT, result
from rich.console import Console

from layerstream_compare.case import Case
from layerstream_compare.measurement import Divergence, Measurement
from layerstream_compare.protocol import measurement_of
from layerstream_compare.reports.metrics import rows_of
from layerstream_compare.reports.terminal import terminal_table


def measured(variant: str, **changes) -> Measurement:
    case = Case(model="m", variant=variant, prompt="Hi", attention=changes.pop("attention", "default"))
    return measurement_of(case, {"kind": "result", **result(**changes)}, isolation="process")


def on_a_cpu() -> list[Measurement]:
    different = Divergence(position=17, reference_token="a", variant_token="b", margin=0.0035)
    return [
        measured("streamed", facts={"answer_compared_with": "streamed"}),
        measured("resident", facts={"answer_compared_with": "streamed"}),
        measured("bnb-nf4", divergence=asdict(different)),
        measured("streamed", attention="hub-flash-attention-2"),
        Measurement(case=Case(model="m", variant="torchao-int8"), status="failed", reason="no"),
    ]


def lines_of(measurements: list[Measurement], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(rows_of(measurements), width=width))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("measurements", [on_a_cpu(), default_table()], ids=["cpu", "accelerator"])
def test_a_table_fits_its_terminal_and_shows_every_figure_whole(width, measurements):
    lines = lines_of(measurements, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert "…" not in "".join(words)
    widest = " ".join(lines_of(measurements, 300)).split()
    figures = {word for word in widest if word[0].isdigit()}
    assert figures
    assert figures <= set(words)


def test_a_wide_terminal_gets_one_table_and_a_narrow_one_several():
    counts = [" ".join(lines_of(on_a_cpu(), width)).split().count("variant") for width in (120, 80, 60)]
    assert counts == [1, 2, 3]


def test_a_case_that_failed_is_named_once_with_its_answer():
    text = "\n".join(lines_of(on_a_cpu(), 60))
    assert text.count("torchao-int8") == 1


def test_figures_that_nobody_measured_take_no_room():
    failed = [Measurement(case=Case(model="m", variant="resident"), status="failed", reason="no")]
    assert lines_of(failed, 60)[0].split() == ["variant", "answer"]


def test_both_texts_have_columns_where_agreement_was_measured_on_prose_too():
    prose = AGREEMENT | {"text": "prose", "kl_mean": 0.0123}
    lines = lines_of([measured("bnb-nf4", agreements=[AGREEMENT, prose])], 120)
    assert lines[1].split()[-5:] == ["answer", "answer", "prose", "prose", "answer"]
    assert "0.012" in lines[3]
