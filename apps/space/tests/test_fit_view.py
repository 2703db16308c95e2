"""The answer of "Will it fit?" as HTML."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import sample_values
from test_views import checked

from layerstream import KNOWN_MODELS, Machine
from layerstream_space.planner import ManyPrompts
from layerstream_space.view.elements import format_seconds, gigabytes
from layerstream_space.view.fit import FitText, fit_view, known_table

MIB = sample_values.MIB
TEXT = FitText(machine_title="A card")
MANY = ManyPrompts(at_once=32, total_s=7200.0)


def where_of(html: str, row: str) -> str:
    return re.search(rf'<th scope="row">{row}</th><td>[^<]*</td><td class="\w+">([^<]*)</td>', html)[1]


def test_page_says_whether_it_runs_and_what_fewer_bits_need():
    html = checked(fit_view(sample_values.answer(sample_values.plan()), MANY, TEXT))
    assert "It runs, streamed" in html
    assert format_seconds(0.02) in html
    assert "/home" not in html
    # 14 Mi weights at a byte each, 4 MiB kept, 4 MiB of cache
    assert f">{gigabytes(22 * MIB)}<" in html
    assert "damaged" not in html


def test_disks_speed_is_shown():
    answer = sample_values.answer(sample_values.plan())
    answer = replace(answer, machine=replace(answer.machine, disk_bytes_per_s=3.4e9))
    html = fit_view(answer, MANY, TEXT)
    assert "disk 3.40 GB/s" in html
    assert "from disk at 3.40 GB/s" in html


def test_times_are_those_of_the_plan():
    html = checked(fit_view(sample_values.answer(sample_values.plan()), MANY, TEXT))
    rows = dict(re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)', html))
    # half a second for the prompt and 20 ms for every token
    assert rows["the first token, after a prompt of 512 tokens"] == format_seconds(0.5)
    assert rows["100 tokens after it"] == format_seconds(2.0)
    assert rows["one answer of 128 tokens, with its prompt"] == format_seconds(0.5 + 128 * 0.02)
    assert rows["1,000 such prompts, 32 at a time"] == format_seconds(7200.0)
    assert f"{format_seconds(7.2)} per answer" in html
    assert "nothing was run" in html


def test_time_of_many_prompts_is_left_open_until_it_is_known():
    answer = sample_values.answer(sample_values.plan())
    assert '<th scope="row">1,000 such prompts</th><td>…</td>' in fit_view(answer, None, TEXT)
    alone = fit_view(answer, ManyPrompts(at_once=1, total_s=10.0), TEXT)
    assert "1,000 such prompts, one after another" in alone


@pytest.mark.parametrize(
    ("card", "ram", "where"),
    [
        (64, 64, "✓ all on the card"),
        (16, 64, f"◐ {gigabytes(16 * MIB)} on the card, {gigabytes(6 * MIB)} in RAM"),
        # four fifths of the RAM may be used
        (16, 5, f"✗ no, {gigabytes(2 * MIB)} too much"),
    ],
)
def test_eight_bits_are_all_on_the_card_or_split_or_do_not_fit(card, ram, where):
    answer = sample_values.answer(sample_values.plan())
    machine = replace(answer.machine, device_memory_bytes=card * MIB, host_memory_bytes=ram * MIB)
    html = checked(fit_view(replace(answer, machine=machine), MANY, TEXT))
    assert where_of(html, "8-bit") == where


def test_without_a_card_there_is_one_memory():
    answer = sample_values.answer(sample_values.plan())
    machine = Machine(device_memory_bytes=64 * MIB, host_memory_bytes=64 * MIB)
    html = fit_view(replace(answer, machine=machine), MANY, TEXT)
    assert where_of(html, "8-bit") == "✓ all in RAM"
    assert "on the card" not in where_of(html, "4-bit")


def test_page_says_why_a_model_does_not_run():
    html = checked(fit_view(sample_values.answer(None, reason="give at least 20 MiB"), None, TEXT))
    assert "It does not fit" in html
    assert "give at least 20 MiB" in html
    assert "How long it takes" not in html


def test_resident_plan_says_that_nothing_streams():
    html = fit_view(sample_values.answer(sample_values.plan("DDDD")), MANY, TEXT)
    assert "It fits as it is" in html


def test_note_on_a_model_and_the_command_are_shown():
    text = FitText(machine_title="A card", note="published in FP8", command="layerstream plan x <y>")
    html = checked(fit_view(sample_values.answer(sample_values.plan()), MANY, text))
    assert "This model is published in FP8." in html
    assert "layerstream plan x &lt;y&gt;" in html
    assert "command line" not in fit_view(sample_values.answer(sample_values.plan()), MANY, TEXT)


def test_known_models_are_listed_in_decimal_gigabytes_with_what_was_quantized():
    html = checked(known_table(KNOWN_MODELS))
    assert html.count("<tr>") == len(KNOWN_MODELS) + 1
    assert "<td>141 GB</td>" in html
    row = re.search(r"<tr><th[^>]*>DeepSeek-V3.*?</tr>", html)[0]
    assert "published in FP8, which layerstream does not load yet" in row
