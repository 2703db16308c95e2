from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_workers import SUCCEEDS, wait_until_gone, worker

from layerstream_compare.case import Case
from layerstream_compare.divergence import END, find_divergence
from layerstream_compare.errors import ExperimentError, ResultsError
from layerstream_compare.experiment import Experiment, compare, run
from layerstream_compare.measurement import Measurement
from layerstream_compare.results import FILE_NAME, FINGERPRINT, ResultsFile, read_results


def experiment(**changes) -> Experiment:
    return Experiment(
        **(
            {
                "model": "m",
                "prompt": "Hi",
                "variants": ("bnb-int8", "resident", "streamed"),
                "time_limit_s": 30,
            }
            | {"noise_floor": False}
            | changes
        )
    )


def answer(tokens: tuple[int, ...], **changes) -> Measurement:
    texts = tuple(f"<{token}>" for token in tokens)
    case = Case(model="m", variant="bnb-int8")
    return Measurement(
        **({"case": case, "status": "ok", "token_ids": tokens, "token_texts": texts} | changes)
    )


def logging_worker(log: Path, body: str = SUCCEEDS) -> tuple[str, ...]:
    note = f"open({str(log)!r}, 'a').write(case['variant'] + ' ' + str(case['round']) + chr(10))\n"
    return worker(note + body)


def test_the_first_exact_variant_is_the_reference_and_runs_first():
    assert [case.variant for case in experiment().cases()] == ["resident", "bnb-int8", "streamed"]
    assert [case.variant for case in experiment(variants=("streamed", "resident")).cases()] == [
        "streamed",
        "resident",
    ]
    assert experiment(variants=("bnb-nf4",)).reference_of(Case(model="m", variant="bnb-nf4")) is None


def test_rounds_are_interleaved_and_quality_is_measured_once():
    cases = experiment(rounds=2, lengths=(512, 1024), variants=("resident", "bnb-int8")).cases()
    assert [(case.round, case.prompt_tokens, case.variant) for case in cases[:5]] == [
        (0, 512, "resident"),
        (0, 512, "bnb-int8"),
        (0, 1024, "resident"),
        (0, 1024, "bnb-int8"),
        (1, 512, "resident"),
    ]
    assert [case.quality for case in cases] == [True, True, False, False, False, False, False, False]
    assert len({case.key for case in cases}) == 8


def test_the_noise_floor_is_the_reference_with_another_kernel_unless_a_case_is_that_already():
    tested = experiment(noise_floor=True, rounds=2, lengths=(512, 1024))
    (floor,) = set(tested.cases()) - set(experiment(rounds=2, lengths=(512, 1024)).cases())
    assert tested.cases()[-1] == floor
    assert (floor.variant, floor.attention, floor.prompt_tokens, floor.quality) == (
        "resident",
        "eager",
        512,
        True,
    )
    for changes in ({"attention": ("default", "sdpa-math")}, {"quality": False}, {"variants": ("bnb-int8",)}):
        without = experiment(**changes)
        assert experiment(noise_floor=True, **changes).cases() == without.cases()


def test_the_reference_has_the_same_length_and_round_and_default_attention_if_listed():
    tested = experiment(attention=("eager", "default"), rounds=2, lengths=(0, 64))
    case = tested.cases()[-1]
    reference = tested.reference_of(case)
    assert (reference.variant, reference.attention, reference.prompt_tokens, reference.round) == (
        "resident",
        "default",
        64,
        1,
    )
    assert reference in tested.cases()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("bnb-nf5",)}, "bnb-nf5"),
        ({"attention": ("fast",)}, "fast"),
        ({"variants": ()}, "none"),
        ({"variants": ("resident", "resident")}, "resident, resident"),
        ({"lengths": (-1,)}, "-1"),
        ({"lengths": (5, 5)}, "5, 5"),
        ({"rounds": 0}, "rounds is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt": "  "}, "empty"),
        ({"time_limit_s": 0}, "time_limit_s is 0"),
        ({"budget": "plenty"}, "the budget is 'plenty': give min, or a size"),
        ({"budget": "0 MiB"}, "the budget is '0 MiB'"),
        ({"host_budget": "plenty"}, "the host budget is 'plenty': give min, or a size"),
    ],
)
def test_an_invalid_experiment_is_rejected_with_the_given_value(changes, message):
    with pytest.raises(ExperimentError, match=message):
        experiment(**changes)


@pytest.mark.parametrize("budget", ["min", "auto", "1", "100MiB", "1.5G", ".5 gb", " 6 GiB "])
def test_a_budget_is_min_auto_or_a_size(budget):
    assert experiment(budget=budget).budget == budget


def test_both_budgets_reach_every_case_and_are_the_least_by_default():
    assert {(case.budget, case.host_budget) for case in experiment().cases()} == {("min", "min")}
    cases = experiment(budget="6 GiB", host_budget="auto", noise_floor=True).cases()
    assert {(case.budget, case.host_budget) for case in cases} == {("6 GiB", "auto")}


def test_a_draft_is_for_the_streamed_variant_only_and_in_its_name():
    drafts = {case.label: case.draft for case in experiment(draft="lookup").cases()}
    assert drafts == {"resident": "", "bnb-int8": "", "streamed · lookup draft": "lookup"}


def test_prose_is_compared_only_on_request_because_it_takes_longest():
    assert {case.prose for case in experiment().cases()} == {False}
    assert {case.prose for case in experiment(prose=True, noise_floor=True).cases()} == {True}
    assert not Case(model="m", variant="resident").prose


@pytest.mark.parametrize("budget", ["", "0", "0.0 GB", "-3 MiB", "6 X", "6 GiB 2", "٣"])
def test_a_budget_that_is_not_a_size_is_rejected(budget):
    with pytest.raises(ExperimentError, match="the budget is"):
        experiment(budget=budget)


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_a_path_without_a_model_is_rejected_before_anything_starts(model, tmp_path, runner):
    with pytest.raises(ExperimentError, match=f"there is no folder {model}: give"):
        compare(experiment(model=model, out=tmp_path / "new"), runner=runner(worker(SUCCEEDS)))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ExperimentError, match=r"has no config\.json"):
        compare(experiment(model=str(tmp_path)), runner=runner(worker(SUCCEEDS)))


def test_a_crash_in_one_case_does_not_affect_the_others(runner):
    body = "if case['variant'] == 'bnb-int8': os.kill(os.getpid(), signal.SIGSEGV)\n" + SUCCEEDS
    measurements = compare(experiment(), runner=runner(worker(body)))
    assert [(m.case.variant, m.status) for m in measurements] == [
        ("resident", "ok"),
        ("bnb-int8", "failed"),
        ("streamed", "ok"),
    ]
    assert all(m.environment["versions"]["torch"] for m in measurements)


def test_a_failure_that_no_variant_avoids_is_met_once_and_fails_the_other_cases(tmp_path, runner):
    log = tmp_path / "log"
    body = "emit('failed', reason='no tokenizer', hits_every_case=True)"
    tested = experiment(out=tmp_path)
    events = list(run(tested, runner=runner(logging_worker(log, body))))
    assert log.read_text().splitlines() == ["resident 0"]
    assert [event.case.variant for event in events if event.kind == "started"] == ["resident"]
    measurements = [event.measurement for event in events if event.measurement]
    assert [m.case for m in measurements] == list(tested.cases())
    assert {(m.status, m.reason) for m in measurements} == {("failed", "no tokenizer")}
    # once the reason is gone, all of them run
    log.unlink()
    assert {m.status for m in compare(tested, runner=runner(logging_worker(log)))} == {"ok"}
    assert len(log.read_text().splitlines()) == 3


def test_answers_are_compared_with_the_reference_and_name_it(runner):
    body = (
        "if case['variant'] == 'bnb-int8':\n"
        "    RESULT |= {'token_ids': [1, 7, 3], 'token_texts': ['a', '!', ' c']}\n" + SUCCEEDS
    )
    reference, quantized, streamed = compare(experiment(), runner=runner(worker(body)))
    assert (quantized.divergence.position, quantized.divergence.margin) == (1, 0.004)
    assert (quantized.divergence.reference_token, quantized.divergence.variant_token) == (" b", "!")
    assert streamed.divergence is None
    assert streamed.facts["answer_compared_with"] == quantized.facts["answer_compared_with"] == "resident"
    assert reference.facts["answer_compared_with"] == "resident"
    assert reference.divergence is None


def test_equal_answers_do_not_diverge_and_a_prefix_diverges_at_its_end():
    assert find_divergence(answer((1, 2)), answer((1, 2))) is None
    shorter = find_divergence(answer((1,)), answer((1, 2), facts={"margins": [0.1, 0.2]}))
    assert (shorter.position, shorter.variant_token, shorter.reference_token, shorter.margin) == (
        1,
        END,
        "<2>",
        0.2,
    )
    longer = find_divergence(answer((1, 2)), answer((1,)))
    assert (longer.position, longer.variant_token, longer.reference_token) == (1, "<2>", END)
    assert math.isnan(longer.margin)


def test_a_second_run_skips_finished_cases_and_runs_failed_ones_again(tmp_path, runner):
    log = tmp_path / "log"
    tested = experiment(out=tmp_path)
    failing = "if case['variant'] == 'bnb-int8': sys.exit(1)\n"
    failing += "if case['variant'] == 'streamed': emit('unavailable', reason='no'); sys.exit()\n"
    compare(tested, runner=runner(logging_worker(log, failing + SUCCEEDS)))
    log.unlink()
    events = list(run(tested, runner=runner(logging_worker(log))))
    assert log.read_text().split() == ["bnb-int8", "0"]
    assert [event.case.variant for event in events if event.kind == "skipped"] == ["resident", "streamed"]
    measured = {m.case.variant: m for m in read_results(tmp_path)}
    assert {name: m.status for name, m in measured.items()} == {
        "resident": "ok",
        "bnb-int8": "ok",
        "streamed": "unavailable",
    }
    # the reference came from the file
    assert measured["bnb-int8"].facts["answer_compared_with"] == "resident"


def test_a_folder_holds_one_prompt_and_a_fresh_start_keeps_the_other(tmp_path, runner):
    run_case = runner(worker(SUCCEEDS))
    tested = experiment(out=tmp_path, variants=("resident",))
    compare(tested, runner=run_case)
    before = (tmp_path / FILE_NAME).read_bytes()
    other = experiment(out=tmp_path, variants=("resident",), prompt="Another")
    with pytest.raises(ResultsError, match="prompt: Hi -> Another"):
        compare(other, runner=run_case)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [m.status for m in compare(other, runner=run_case, restart=True)] == ["ok"]
    assert [m.case.prompt for m in read_results(tmp_path)] == ["Another"]
    assert (tmp_path / "results.jsonl.1").read_bytes() == before


def test_a_folder_holds_one_model_even_if_another_takes_its_place(tmp_path, runner, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tested = experiment(out=tmp_path, variants=("resident",), model=str(model))
    (measured,) = compare(tested, runner=runner(worker(SUCCEEDS)))
    assert set(measured.environment[FINGERPRINT]) >= {"config.json", "safetensors headers", "weights"}
    assert len(compare(tested, runner=runner(worker(SUCCEEDS)))) == 1
    with (model / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ResultsError, match=r"the model's config\.json: "):
        compare(tested, runner=runner(worker(SUCCEEDS)))


def test_a_run_resumed_from_a_torn_file_measures_only_missing_cases(tmp_path, runner):
    tested = experiment(out=tmp_path, variants=("resident", "streamed"))
    compare(tested, runner=runner(worker(SUCCEEDS)))
    path, log = tmp_path / FILE_NAME, tmp_path / "log"
    content = path.read_bytes()
    first_bytes = content.index(b"\n")
    for length in (
        0,
        1,
        first_bytes - 1,
        first_bytes,
        first_bytes + 1,
        first_bytes + 50,
        len(content) - 2,
        len(content) - 1,
    ):
        path.write_bytes(content[:length])
        log.write_text("")
        measurements = compare(tested, runner=runner(logging_worker(log)))
        assert [m.case.variant for m in measurements] == ["resident", "streamed"]
        missing = ["resident 0"] * (length < first_bytes) + ["streamed 0"] * (length < len(content) - 1)
        assert log.read_text().splitlines() == missing, length
        assert len(path.read_bytes().splitlines()) == 2


def test_a_run_killed_in_the_middle_of_a_case_resumes_there(tmp_path, runner):
    log, tested = tmp_path / "log", experiment(out=tmp_path)
    stuck = "from layerstream_compare.worker.parent_watch import exit_with_reader\nexit_with_reader(fd)\n"
    stuck += "if case['variant'] == 'bnb-int8': emit('token', pid=os.getpid()); time.sleep(60)\n" + SUCCEEDS
    program = f"""
from functools import partial
from layerstream_compare.experiment import Experiment, run
from layerstream_compare.runners.isolate import run_isolated
tested = Experiment(
    model="m", prompt="Hi", variants={tested.variants!r}, time_limit_s=30, out={str(tmp_path)!r}
)
for event in run(tested, runner=partial(run_isolated, worker_command={logging_worker(log, stuck)!r})):
    if "pid" in event.data:
        print(event.data["pid"], flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert wait_until_gone(pid)
    assert log.read_text().splitlines() == ["resident 0", "bnb-int8 0"]
    assert [m.case.variant for m in read_results(tmp_path)] == ["resident"]
    log.write_text("")
    measurements = compare(tested, runner=runner(logging_worker(log)))
    assert log.read_text().splitlines() == ["bnb-int8 0", "streamed 0"]
    assert [m.case.variant for m in measurements] == ["resident", "bnb-int8", "streamed"]
    records = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert sorted(record["case"]["variant"] for record in records) == ["bnb-int8", "resident", "streamed"]


def test_closing_the_run_ends_the_case_and_unlocks_the_folder(tmp_path, runner):
    body = "emit('token', pid=os.getpid()); time.sleep(60)"
    events = run(experiment(out=tmp_path), runner=runner(worker(body)))
    pid = next(event.data["pid"] for event in events if "pid" in event.data)
    events.close()
    assert not Path(f"/proc/{pid}").exists()
    with ResultsFile(tmp_path) as results:
        assert results.measurements == {}
