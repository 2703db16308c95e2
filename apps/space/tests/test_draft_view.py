"""What the page shows of a draft: the plan's expectation, then what each sweep verified."""

from __future__ import annotations

import re
from dataclasses import replace

import sample_values
from test_views import STREAMED, checked, sample_timeline

from layerstream import DraftForecast, SpeculationReport
from layerstream_space.planner import ModelSource, Planner
from layerstream_space.run_state import RunState
from layerstream_space.timeline_state import TimelineState
from layerstream_space.ui.watch import _plan_html
from layerstream_space.view.draft import SHOWN_ROWS, draft_view
from layerstream_space.view.how_to_read import how_to_read_timeline
from layerstream_space.view.timeline import watch_view

FORECAST = DraftForecast(acceptance=0.9, drafted=4, tokens_per_sweep=4.1, token_s=0.01, plain_token_s=0.02)
DRAFTED_PLAN = replace(sample_values.plan(), draft="int8", draft_forecast=FORECAST)
REPORT = SpeculationReport(
    draft="int8", tokens=12, sweeps=3, verified=14, drafted=(3, 3), accepted=(3, 2), draft_s=0.5
)


def drafted_timeline(*sweeps: tuple[int, int, int]) -> TimelineState:
    timeline = TimelineState(plan=DRAFTED_PLAN)
    for drafted, accepted, tokens in sweeps:
        data = {"drafted": drafted, "accepted": accepted, "tokens": tokens}
        timeline.apply(sample_values.event(STREAMED, "verified", **data))
    return timeline


def test_events_of_sweeps_reach_the_timeline_of_the_run():
    state = RunState([STREAMED], STREAMED)
    state.apply(sample_values.event(STREAMED, "verified", drafted=8, accepted=3, tokens=4), 0.0)
    state.apply(sample_values.event(STREAMED, "verified", drafted=4, accepted=1, tokens=2), 1.0)
    assert [sweep.accepted for sweep in state.timeline.verified] == [3, 1]
    assert state.timeline.tokens_per_sweep == 3.0


def test_each_sweep_has_a_mark_for_every_accepted_own_and_rejected_token_the_newest_first():
    html = checked(draft_view(drafted_timeline((4, 4, 5), (5, 2, 3)), None))
    second, first = re.findall(r"<li><span>.*?</li>", html)
    assert "sweep 2" in second and "2 of 5 accepted, 3 tokens" in second
    assert '<b class="yes">●●</b><b class="own">◆</b><b class="no">○○○</b>' in second
    assert '<b class="yes">●●●●</b><b class="own">◆</b></span>' in first
    assert "<b>4.0</b> tokens per sweep so far" in html


def test_answer_that_ends_within_its_accepted_tokens_has_no_token_of_the_models_own():
    html = checked(draft_view(drafted_timeline((4, 4, 3), (0, 0, 1)), None))
    last, first = re.findall(r"<li><span>.*?</li>", html)
    assert "◆" not in first
    assert "4 of 4 accepted, 3 tokens, the end" in first
    assert "nothing drafted, 1 token<" in last


def test_only_the_latest_sweeps_are_drawn_and_the_others_counted():
    html = checked(draft_view(drafted_timeline(*[(2, 1, 2)] * (SHOWN_ROWS + 3)), None))
    assert len(re.findall(r"<li><span>", html)) == SHOWN_ROWS
    assert "sweeps before these: 3" in html


def test_sweeps_in_a_row_for_which_nothing_was_drafted_share_a_row():
    html = checked(draft_view(drafted_timeline((0, 0, 1), (2, 1, 2), *[(0, 0, 1)] * 5, (1, 1, 2)), None))
    names = re.findall(r"<li><span>(.*?)</span>", html)
    assert names == ["sweep 8", "sweeps 3 to 7", "sweep 2", "sweep 1"]
    assert (
        'nothing drafted, 5 tokens</span><span class="marks" aria-hidden="true"><b class="own">◆◆◆◆◆</b>'
        in html
    )


def test_in_the_end_the_line_of_the_report_stands_there():
    html = checked(draft_view(drafted_timeline((4, 4, 5)), REPORT))
    assert REPORT.explain() in html
    assert "so far" not in html


def test_before_the_first_sweep_the_card_says_what_comes():
    assert "The prompt comes first" in checked(draft_view(drafted_timeline(), None))


def test_run_without_a_draft_shows_nothing_of_it():
    assert draft_view(sample_timeline(), None) == ""
    assert draft_view(TimelineState(), None) == ""
    assert "ls-draft" not in watch_view(sample_timeline(), ["Once"], "writing", is_over=True)


def test_plan_says_what_it_expects_of_the_draft_or_why_there_is_none():
    assert FORECAST.explain() in checked(_plan_html(DRAFTED_PLAN))
    refused = replace(sample_values.plan(), draft_refusal="its state cannot be taken back")
    assert "No draft: its state cannot be taken back." in checked(_plan_html(refused))
    assert "raft" not in _plan_html(sample_values.plan()).partition("ls-card")[0]


def test_marks_are_explained_where_the_page_is():
    assert "the answer is the same as without a draft" in checked(how_to_read_timeline())


class NoProfiler:
    """Answers with a profile that is there."""

    def ask(self, kind, **_):
        assert kind == "profile"
        return {"profile": sample_values.profile().to_dict()}

    def close(self):
        pass


def test_planner_makes_room_for_the_draft():
    planner = Planner(NoProfiler())
    asked = {
        "machine": sample_values.answer(None).machine,
        "workload": sample_values.answer(None).workload,
        "share": 0.0,
    }
    source = ModelSource(model="tiny")
    plain = planner.plan(source, **asked).plan
    drafted = planner.plan(source, **asked, draft="int8").plan
    assert (plain.draft, drafted.draft) == ("", "int8")
    assert drafted.ledger.device_bytes > plain.ledger.device_bytes
    planner.close()
