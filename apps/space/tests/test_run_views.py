"""What a run's views add to its figures: explanations where they are needed, ranges, rounds, growth."""

from __future__ import annotations

import pytest
import sample_values
from test_views import NF4, STREAMED, checked, done_state, sample_timeline

from layerstream import format_seconds
from layerstream_space.run_state import RunState
from layerstream_space.view.bars import plots_view
from layerstream_space.view.columns import TWO_TEXTS, columns_view
from layerstream_space.view.curves import curves_view, growth
from layerstream_space.view.how_to_read import how_to_read_columns, how_to_read_timeline
from layerstream_space.view.timeline import watch_view


def test_summary_says_that_the_reference_failed_and_not_that_there_was_none():
    state = RunState([STREAMED, NF4], STREAMED)
    failed = sample_values.measurement(STREAMED, status="failed", reason="too small", ids=(), texts=())
    state.apply(sample_values.finished(failed), 0.0)
    state.apply(sample_values.finished(sample_values.measurement(NF4)), 1.0)
    html = checked(columns_view(state, 2.0))
    assert "<b>Streamed</b>, the reference, failed" in html
    assert "No exact variant" not in html
    alone = RunState([NF4], None)
    alone.apply(sample_values.finished(sample_values.measurement(NF4)), 0.0)
    assert "No exact variant" in columns_view(alone, 1.0)


def test_colours_of_the_explanations_are_those_of_the_drawings():
    drawn = plots_view([sample_values.measurement(STREAMED)])
    for kind in ("held", "working", "mapped", "spike", "time"):
        assert f'<i class="{kind}"' in drawn
        assert f'<i class="{kind}"' in how_to_read_columns(has_device=False)
    timeline = watch_view(sample_timeline(), ["Once"], "writing", is_over=True)
    for kind in ("read", "compute", "wait"):
        assert f'<svg class="{kind}"' in timeline
        assert f'<i class="{kind}"' in checked(how_to_read_timeline())


def test_another_answer_beside_equal_top_tokens_is_explained_where_it_stands():
    differs = done_state(ids=(1, 7, 3), texts=("The", " sea", " was"))
    assert TWO_TEXTS in checked(columns_view(differs, 2.0))
    assert TWO_TEXTS not in columns_view(done_state(), 2.0)
    worse = done_state(ids=(1, 7, 3), agreements=(sample_values.agreement(top1=0.9),))
    assert TWO_TEXTS not in columns_view(worse, 2.0)


def test_agreement_that_was_not_asked_for_takes_no_room():
    case = sample_values.case("streamed", quality=False)
    state = RunState([case], case)
    state.apply(sample_values.finished(sample_values.measurement(case, agreements=())), 0.0)
    assert "same top token" not in checked(columns_view(state, 1.0))


def test_growth_of_a_curve_is_measured_between_its_longest_prompt_and_half_of_it():
    found = growth([(length, length**2.0) for length in (1024, 2048, 4096)])
    assert (found.exponent, found.start, found.end) == (pytest.approx(2.0), 2048, 4096)


def test_short_prompts_whose_memory_reads_too_low_give_no_growth():
    # the warm-up took part of the memory of the shorter prompts, which bends the line
    bent = [(256, 2.0), (512, 8.0), (1024, 40.0)]
    assert growth(bent) is None
    assert growth([*bent, (2048, 80.0)]).exponent == pytest.approx(1.0)


def test_curves_say_which_growth_was_measured_and_between_which_lengths():
    found = [
        sample_values.measurement(sample_values.case("resident", attention="eager", prompt_tokens=length))
        for length in (512, 1024, 2048)
    ]
    html = checked(curves_view(found))
    assert "measured here: memory grew as length<sup>0.0</sup> from 1,024 to 2,048 tokens" in html


def noisy(of, **changes):
    return sample_values.measurement(
        of, timing=sample_values.timing(is_noisy=True, inter_token_p95_s=0.4), **changes
    )


def test_times_of_a_noisy_lane_are_pale_and_show_their_range():
    html = checked(plots_view([noisy(STREAMED), sample_values.measurement(NF4)]))
    assert html.count('class="time unsure"') == 2
    assert html.count('class="time"') == 2
    assert html.count('class="range"') == 1
    assert f"between {format_seconds(0.08)} and {format_seconds(0.4)}" in html
    assert "the machine was busy" in html
    assert "the machine was busy" not in plots_view([sample_values.measurement(NF4)])


def in_rounds(of, *first_token_s):
    return [
        sample_values.measurement(
            of.with_changes(round=number, quality=number == 0),
            timing=sample_values.timing(first_token_s=seconds),
        )
        for number, seconds in enumerate(first_token_s)
    ]


def test_rounds_share_a_column_and_a_bar_that_show_their_median():
    rounds = in_rounds(STREAMED, 0.2, 0.9, 0.3)
    state = RunState([each.case for each in rounds], STREAMED)
    assert len(state.columns) == 1
    for number, each in enumerate(rounds):
        assert state.columns[0].status == "waiting"
        state.apply(sample_values.event(each.case, "started"), number)
        state.apply(sample_values.finished(each), number + 0.5)
    assert (state.is_over, state.num_measured, len(state.measurements)) == (True, 3, 3)
    assert f"<dt>first token</dt><dd>{format_seconds(0.3)}</dd>" in checked(columns_view(state, 4.0))
    bars = checked(plots_view(state.measurements))
    assert bars.count('class="range"') == 2
    assert f"{format_seconds(0.3)}, between {format_seconds(0.2)} and {format_seconds(0.9)}" in bars


def test_later_round_keeps_the_words_of_the_first_one():
    first, second = in_rounds(STREAMED, 0.2, 0.3)
    state = RunState([first.case, second.case], STREAMED)
    state.apply(sample_values.finished(first), 0.0)
    state.apply(sample_values.event(second.case, "started"), 1.0)
    state.apply(sample_values.token(second.case, 1, "The"), 2.0)
    assert state.columns[0].token_texts == ["The", " sky", " is"]
    assert "running, 1 of 2 rounds done" in checked(columns_view(state, 2.0))
