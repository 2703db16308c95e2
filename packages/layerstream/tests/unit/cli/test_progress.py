"""Progress is arithmetic on spans: every figure is checked against a timeline made by hand."""

from __future__ import annotations

import pytest

from layerstream.cli.progress import ProgressTracker, format_progress
from layerstream.spec.timeline import Activity, Span, Timeline


def span(activity: Activity, sweep: int, unit: int, start_s: float, end_s: float, num_bytes: int = 0) -> Span:
    return Span(
        activity=activity,
        unit=f"blocks.{unit}",
        unit_index=unit,
        sweep=sweep,
        start_s=start_s,
        end_s=end_s,
        num_bytes=num_bytes,
    )


def compute(sweep: int, unit: int, start_s: float) -> Span:
    return span(Activity.COMPUTE, sweep, unit, start_s, start_s + 0.1)


def tracker(**settings: float) -> ProgressTracker:
    return ProgressTracker(num_units=4, max_new_tokens=10, **settings)


def test_before_the_first_sweep_it_waits_for_weights() -> None:
    state = tracker(predicted_sweep_s=2.0, predicted_prefill_s=5.0).state(0.0)
    assert state.sweep is None
    assert state.eta_s == 5.0 + 9 * 2.0
    assert format_progress(state) == "waiting for the first weights"


def test_it_follows_the_newest_sweep_and_ignores_late_spans_of_older_ones() -> None:
    progress = tracker()
    for sweep, unit in [(0, 0), (0, 1), (1, 0), (1, 2), (0, 3), (1, 1)]:
        progress.observe(compute(sweep, unit, start_s=sweep + unit / 10))
    state = progress.state(2.0)
    assert (state.sweep, state.unit_index) == (1, 2)


def test_sweeps_count_from_the_first_one_observed() -> None:
    progress = tracker()
    progress.observe(compute(7, 0, 0.0))
    progress.observe(compute(8, 0, 1.0))
    assert progress.state(1.0).sweep == 1


def test_the_prediction_is_used_until_a_sweep_after_the_prompt_was_observed() -> None:
    progress = tracker(predicted_sweep_s=3.0)
    progress.observe(compute(0, 0, 0.0))
    assert progress.state(1.0).sweep_s == 3.0
    progress.observe(compute(1, 0, 40.0))
    assert progress.state(40.0).sweep_s == 3.0, "the prompt's sweep does not count"
    progress.observe(compute(2, 0, 42.0))
    assert progress.state(42.0).sweep_s == pytest.approx(2.0)


def test_the_sweep_time_is_the_median_of_the_last_sweeps() -> None:
    progress = tracker()
    for sweep, start_s in enumerate([0, 50, 51, 52, 53, 63, 64, 65, 66]):
        progress.observe(compute(sweep, 0, float(start_s)))
    assert progress.state(66.0).sweep_s == pytest.approx(1.0)


def test_the_time_left_is_the_rest_of_this_sweep_and_one_sweep_for_each_later_token() -> None:
    progress = tracker(predicted_sweep_s=2.0, predicted_prefill_s=5.0)
    progress.observe(compute(0, 0, 0.0))
    assert progress.state(1.0).eta_s == pytest.approx((5 - 1) + 9 * 2.0)
    progress.count_tokens()
    progress.observe(compute(1, 0, 5.0))
    assert progress.state(5.5).eta_s == pytest.approx((2 - 0.5) + 8 * 2.0)
    assert progress.state(99.0).eta_s == pytest.approx(8 * 2.0), (
        "a slow sweep never makes the time left negative"
    )


def test_no_time_is_left_when_all_tokens_are_generated() -> None:
    progress = tracker(predicted_sweep_s=2.0)
    progress.observe(compute(0, 0, 0.0))
    progress.count_tokens(10)
    assert progress.state(1.0).eta_s == 0.0


def test_without_a_prediction_the_line_has_no_time_left() -> None:
    progress = tracker()
    progress.observe(compute(0, 0, 0.0))
    state = progress.state(1.0)
    assert state.eta_s is None
    assert "left" not in format_progress(state)


def test_the_rate_covers_only_the_window() -> None:
    progress = tracker(window_s=2.0)
    progress.observe(span(Activity.READ, 0, 0, 0.0, 1.0, 10_000))
    progress.observe(span(Activity.READ, 0, 1, 8.0, 10.0, 4_000))
    assert progress.state(10.0).bytes_per_s == pytest.approx(2_000.0)
    assert progress.state(20.0).bytes_per_s == 0.0


def test_a_read_that_began_before_the_window_counts_in_part() -> None:
    progress = tracker(window_s=2.0)
    progress.observe(span(Activity.READ, 0, 0, 0.0, 10.0, 10_000))
    assert progress.state(10.0).bytes_per_s == pytest.approx(1_000.0)


def test_the_line_shows_every_figure_of_the_state() -> None:
    progress = tracker(predicted_sweep_s=2.0)
    timeline = Timeline()
    timeline.subscribe(progress.observe)
    timeline.record(span(Activity.READ, 3, 1, 9.0, 10.0, 2_930_000_000))
    timeline.record(compute(2, 0, 8.0))
    timeline.record(compute(3, 1, 9.5))
    progress.count_tokens(3)
    text = format_progress(progress.state(10.0), "part")
    assert "sweep 1 · part 2/4 · 2.93 GB/s · 3/10 tokens · about 13.5 s left" in text
    assert text.startswith("━━━━━━╌╌╌╌╌╌ ")


def test_with_a_draft_fewer_sweeps_are_left_than_tokens() -> None:
    progress = tracker()
    for sweep, tokens in enumerate([1, 3, 3]):
        progress.observe(compute(sweep, 0, float(sweep)))
        progress.count_tokens(tokens)
    progress.observe(compute(3, 0, 3.0))
    state = progress.state(3.0)
    # 7 of 10 tokens after the prompt's sweep and two more; the third has just begun
    assert state.tokens == 7
    assert state.eta_s == pytest.approx(1.0 + (3 / 2 - 1) * 1.0)
