from __future__ import annotations

import io

import pytest
from fake_workers import result
from rich.console import Console

from layerstream_compare.announcement import announcement, stored_weights_bytes
from layerstream_compare.case import Case
from layerstream_compare.events import Event
from layerstream_compare.experiment import Experiment
from layerstream_compare.live import LiveView, about, follow, in_steps
from layerstream_compare.measurement import Measurement
from layerstream_compare.protocol import measurement_of
from layerstream_compare.steps import STEP_SECONDS

STEPS = {"start": 6.0, "load": 3.0, "prompt": 1.0, "answer": 11.0, "agreement": 20.0}


def case_of(variant: str) -> Case:
    return Case(model="m", variant=variant, prompt="Hi", warmup_tokens=0, max_new_tokens=5)


CASES = tuple(map(case_of, ("streamed", "resident", "bnb-nf4")))


def measured(case: Case, **facts) -> Measurement:
    return measurement_of(case, {"kind": "result", **result(facts=facts)}, isolation="process")


def ended(case: Case, kind: str = "finished", **changes) -> Event:
    found = measured(case, **{STEP_SECONDS: STEPS})
    if changes:
        found = Measurement(case=case, **changes)
    return Event(case=case, kind=kind, data={}, measurement=found)


def started(case: Case) -> Event:
    return Event(case=case, kind="started", data={})


def in_phase(case: Case, phase: str) -> Event:
    return Event(case=case, kind="phase", data={"phase": phase})


class Clock:
    """A clock that the test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def shown(view: LiveView, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()


def test_the_view_says_which_case_and_step_runs_how_long_and_how_much_is_left():
    clock = Clock()
    view = LiveView(CASES, clock)
    view.update(started(CASES[0]))
    assert "case 1 of 3, streamed, step 1 of 5: starting its process, 0 s so far" in shown(view)
    assert "time left: known once a case is measured" in shown(view)
    view.update(ended(CASES[0]))
    view.update(started(CASES[1]))
    view.update(in_phase(CASES[1], "quality"))
    clock.now_s = 5.0
    text = shown(view)
    assert "case 2 of 3, resident, step 5 of 5: measuring agreement with the exact model, 5 s so far" in text
    # 15 s of this step and the 41 s of the last case
    assert "about 60 s left" in text


def test_the_view_counts_the_tokens_of_an_answer_and_shows_its_end():
    view = LiveView(CASES, Clock())
    view.update(started(CASES[0]))
    view.update(in_phase(CASES[0], "decode"))
    for word in ("Hello", " you"):
        view.update(Event(case=CASES[0], kind="token", data={"text": word}))
    assert "writing the answer, token 2 of at most 5, 0 s so far" in shown(view)
    assert "Hello you" in shown(view)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_view_fits_a_narrow_terminal_without_cutting_words(width):
    view = LiveView(CASES, Clock())
    view.update(started(CASES[0]))
    view.update(in_phase(CASES[0], "quality"))
    lines = shown(view, width).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert " ".join(" ".join(lines).split()).startswith(
        "case 1 of 3, streamed, step 5 of 5: measuring agreement with the exact model, 0 s so far"
    )


def test_a_finished_case_is_a_line_of_figures_and_a_line_of_times():
    view = LiveView(CASES, Clock())
    view.update(started(CASES[0]))
    assert view.update(ended(CASES[0])) == [
        "[1/3] streamed: held 257 MiB, first token 210 ms, per token 50 ms",
        "    took 41 s: start 6 s, load 3 s, prompt 1 s, answer 11 s, agreement 20 s; about 85 s left",
    ]


def test_a_reason_is_told_once_and_then_by_the_name_of_the_first_case():
    view = LiveView(CASES, Clock())
    lines = []
    for case in CASES[:2]:
        view.update(started(case))
        lines += view.update(ended(case, status="failed", reason="no room"))
    assert lines == [
        "[1/3] streamed: failed: no room",
        "[2/3] resident: failed: the same reason as streamed",
    ]


def test_cases_that_were_not_started_are_named_together_at_the_end():
    view = LiveView(CASES, Clock())
    view.update(started(CASES[0]))
    view.update(ended(CASES[0], status="failed", reason="no tokenizer", hits_every_case=True))
    for case in CASES[1:]:
        assert view.update(ended(case, status="failed", reason="no tokenizer", hits_every_case=True)) == []
    assert view.last_lines() == ["not started, because they would fail the same way: resident, bnb-nf4"]


def test_the_end_says_how_long_everything_took_without_what_was_measured_before():
    clock, console = Clock(), Console(file=io.StringIO())
    view = LiveView(CASES, clock)

    def events():
        yield ended(CASES[0], "skipped")
        for case in CASES[1:]:
            yield started(case)
            yield ended(case)
        clock.now_s = 83.0

    follow(events(), view, console, ["what is about to happen"])
    lines = console.file.getvalue().splitlines()
    assert lines[0].endswith("(already measured)")
    assert lines[1] == "what is about to happen"
    assert lines[-1] == "in all 1 min 23 s: start 12 s, load 6 s, prompt 2 s, answer 22 s, agreement 40 s"
    assert [m.case for m in view.measurements] == list(CASES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than 10 s"),
        (21, "about 25 s"),
        (90, "about 90 s"),
        (91, "about 2 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_an_estimate_is_no_more_exact_than_it_can_be(seconds, text):
    assert about(seconds) == text


def test_steps_are_shown_in_running_order_with_their_sum():
    assert in_steps({"answer": 50.0, "load": 20.0}) == "1 min 10 s: load 20 s, answer 50 s"


def test_the_announcement_says_what_each_case_does_and_what_it_moves(tiny_model):
    def text_of(**changes) -> str:
        return "\n".join(announcement(Experiment(model=tiny_model, prompt="Hi", max_new_tokens=8, **changes)))

    text = text_of()
    assert "5 cases, one after another: streamed, resident, " in text
    assert "- streamed · eager is the original weights with another attention kernel" in text
    assert "of weights) and writes at most 8 tokens; then the exact model is loaded too" in text
    assert "up to 10 times" in text
    assert "prose" not in text
    assert "512 tokens of prose" in text_of(prose=True)
    plain = text_of(variants=("resident",), quality=False)
    assert "1 case, " in plain
    assert "agreement" not in plain
    assert "streamed" not in plain


def test_the_size_of_the_weights_is_known_only_where_they_are_on_this_machine(tiny_model, tmp_path):
    assert 100_000 < stored_weights_bytes(tiny_model) < 1_000_000
    assert stored_weights_bytes(str(tmp_path)) == 0
    assert stored_weights_bytes("no-such/model") == 0
