"""The time to the first token, as planned and as measured, and the lines that show it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.cli.chat_progress import (
    FirstTokenTimes,
    first_token_eta_s,
    format_answering,
    format_tokens_per_s,
    format_waiting,
    waiting_share,
)
from layerstream.cli.progress import ProgressState
from layerstream.spec.plans import SweepCost

COST = SweepCost(
    read_bytes=1,
    copy_bytes=0,
    read_s=2.0,
    copy_s=0.0,
    compute_s=0.1,
    sweep_s=2.0,
    prefill_s=10.0,
    limited_by="disk",
)
WAITING = ProgressState(
    sweep=None,
    unit_index=0,
    num_units=8,
    tokens=0,
    max_new_tokens=50,
    bytes_per_s=0.0,
    sweep_s=2.0,
    eta_s=None,
)


@pytest.mark.parametrize(("prompt_tokens", "expected_s"), [(1, 2.0), (200, 2.0), (500, 5.0), (1000, 10.0)])
def test_a_short_prompt_takes_a_sweep_and_a_long_one_its_share_of_the_planned(
    prompt_tokens: int, expected_s: float
) -> None:
    assert FirstTokenTimes(COST, 1000).expect(prompt_tokens) == expected_s


def test_what_was_measured_corrects_the_plan() -> None:
    times = FirstTokenTimes(COST, 1000)
    times.measure(100, 6.0)
    assert times.expect(100) == pytest.approx(6.0)
    assert times.expect(500) == pytest.approx(15.0)


def test_a_plan_without_times_stays_without() -> None:
    times = FirstTokenTimes(replace(COST, sweep_s=0.0, prefill_s=0.0), 1000)
    times.measure(100, 6.0)
    assert times.expect(100) == 0.0


def test_the_time_left_starts_as_expected_and_follows_the_sweep() -> None:
    assert first_token_eta_s(10.0, 0.0, 0.0) == 10.0
    assert first_token_eta_s(10.0, 4.0, 0.0) == 6.0
    assert first_token_eta_s(10.0, 12.0, 0.0) == 0.0
    assert first_token_eta_s(10.0, 5.0, 0.5) == pytest.approx(5.0), "as fast as expected"
    assert 1.0 < first_token_eta_s(10.0, 1.0, 0.5) < 5.0, "faster"
    assert 5.0 < first_token_eta_s(10.0, 20.0, 0.5) < 20.0, "slower"


@given(expected_s=st.floats(0, 1e4), elapsed_s=st.floats(0, 1e4), share=st.floats(0, 1))
def test_the_time_left_is_never_negative_and_ends_with_the_sweep(
    expected_s: float, elapsed_s: float, share: float
) -> None:
    assert first_token_eta_s(expected_s, elapsed_s, share) >= 0
    assert first_token_eta_s(expected_s, elapsed_s, 1.0) == 0


def test_the_share_is_of_the_prompts_sweep() -> None:
    assert waiting_share(WAITING) == 0.0
    assert waiting_share(replace(WAITING, sweep=0, unit_index=1)) == 0.25
    assert waiting_share(replace(WAITING, sweep=1)) == 1.0


def test_the_line_says_what_is_awaited_and_then_how_fast_it_goes() -> None:
    assert format_waiting(WAITING, 12.0) == "first token in about 12 s"
    reading = replace(WAITING, sweep=0, unit_index=3, bytes_per_s=2.5e9)
    assert format_waiting(reading, 0.3) == "first token any moment · 50% of the weights · 2.50 GB/s"
    assert format_answering(replace(reading, tokens=1), 0.0) == "1/50 tokens · 2.50 GB/s"
    assert format_answering(replace(WAITING, sweep=4, tokens=5), 2.0) == "2 tokens/s · 5/50 tokens"


@pytest.mark.parametrize(
    ("tokens_per_s", "text"),
    [(64.4, "64 tokens/s"), (9.96, "10 tokens/s"), (2.34, "2.3 tokens/s"), (0.0412, "0.041 tokens/s")],
)
def test_a_speed_has_two_figures(tokens_per_s: float, text: str) -> None:
    assert format_tokens_per_s(tokens_per_s) == text
