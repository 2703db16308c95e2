from __future__ import annotations

import json

import pytest

from layerstream_compare.case import Case
from layerstream_compare.errors import ResultsError
from layerstream_compare.measurement import Measurement, Memory, PhaseMemory
from layerstream_compare.results import FILE_NAME, FINGERPRINT, ResultsFile, read_results, set_aside

MEMORY = Memory(
    baseline_bytes=1,
    held_bytes=3,
    peak_over_baseline_bytes=5,
    load_spike_bytes=0,
    phases=(PhaseMemory(phase="load", anonymous_bytes=2, file_bytes=3, peak_bytes=5),),
)


def finished(number: int, **changes) -> Measurement:
    case = Case(model="m", variant="resident", prompt="Grüße\u2028\r", max_new_tokens=1, round=number)
    return Measurement(**({"case": case, "status": "ok", "text": "ä\n"} | changes))


def test_added_measurements_are_read_back(tmp_path):
    with ResultsFile(tmp_path / "new" / "folder") as results:
        for number in range(3):
            results.add(finished(number))
    assert read_results(tmp_path / "new" / "folder") == [finished(0), finished(1), finished(2)]


def test_a_file_cut_at_any_byte_keeps_every_finished_line_and_accepts_new_ones(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0))
        results.add(finished(1))
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    first_bytes = content.index(b"\n")
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        # a line counts once its last brace is there, with or without the newline
        complete = (length >= first_bytes) + (length >= len(content) - 1)
        with ResultsFile(tmp_path) as results:
            assert list(results.measurements.values()) == [finished(0), finished(1)][:complete], length
            results.add(finished(2))
        assert read_results(tmp_path) == [*[finished(0), finished(1)][:complete], finished(2)], length


def test_the_newest_result_of_a_case_wins(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0, status="failed", reason="no"))
        results.add(finished(1))
        results.add(finished(0))
    assert read_results(tmp_path) == [finished(1), finished(0)]


@pytest.mark.parametrize(
    "line", [b'{"schema_version": 99}\n', b"garbage\n", b"[]\n", b'{"schema_version": 2}\n']
)
def test_a_complete_invalid_line_is_rejected_with_its_number_and_kept(tmp_path, line):
    path = tmp_path / FILE_NAME
    path.write_bytes(finished(0).to_json().encode() + b"\n" + line)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="line 2"):
        ResultsFile(tmp_path)
    assert path.read_bytes() == before


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    with ResultsFile(tmp_path), pytest.raises(ResultsError, match="another run is writing"):
        ResultsFile(tmp_path)
    ResultsFile(tmp_path).__exit__()


ENVIRONMENT = {
    "versions": {"torch": "2", "bitsandbytes": "1"},
    FINGERPRINT: {"config.json": "c0", "weights": "w0"},
}


@pytest.mark.parametrize(
    ("changes", "environment", "difference"),
    [
        ({"prompt": "Hello"}, {}, "prompt: Grüße\u2028\r -> Hello"),
        ({"model": "n"}, {}, "model: m -> n"),
        ({"max_new_tokens": 2}, {}, "max_new_tokens: 1 -> 2"),
        ({"chat": False}, {}, "chat: true -> false"),
        ({"budget": "6GiB"}, {}, "budget: min -> 6GiB"),
        ({"host_budget": "auto"}, {}, "host_budget: min -> auto"),
        (
            {"prose": True},
            {},
            "prose: false -> true (to go on there, leave out --prose; in Python, prose=False)",
        ),
        ({}, {"versions": {"torch": "3"}}, "torch: 2 -> 3"),
        ({}, {FINGERPRINT: {"config.json": "c0", "weights": "w1"}}, "the model's weights: w0 -> w1"),
    ],
)
def test_results_of_another_experiment_are_refused_with_both_values(
    changes, environment, difference, tmp_path
):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0, environment=ENVIRONMENT))
        case = finished(0).case.with_changes(**changes)
        with pytest.raises(ResultsError) as raised:
            results.refuse_another_experiment(case, ENVIRONMENT | environment)
    assert f"(old -> new): {difference}. Choose another folder" in str(raised.value)
    assert "--restart" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({"variant": "streamed"}, {}),
        ({"attention": "eager", "round": 3, "prompt_tokens": 64, "quality": False, "time_limit_s": 9.0}, {}),
        ({}, {"versions": {"torch": "2", "bitsandbytes": "2", "torchao": "1"}}),
        ({}, {"versions": {}, FINGERPRINT: {}}),
    ],
)
def test_an_experiment_may_get_more_variants_lengths_and_rounds(changes, environment, tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0, environment=ENVIRONMENT))
        results.refuse_another_experiment(finished(0).case.with_changes(**changes), ENVIRONMENT | environment)


def test_results_measured_with_prose_say_how_to_go_on_there(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0, case=finished(0).case.with_changes(prose=True)))
        with pytest.raises(ResultsError, match=r"\(to go on there, add --prose; in Python, prose=True\)"):
            results.refuse_another_experiment(finished(0).case, {})


def test_results_from_before_the_choice_of_prose_were_measured_with_it(tmp_path):
    record = json.loads(finished(0).to_json())
    del record["case"]["prose"]
    (tmp_path / FILE_NAME).write_text(json.dumps(record) + "\n")
    (measurement,) = read_results(tmp_path)
    assert measurement.case.prose


def test_a_long_prompt_is_cut_in_the_message(tmp_path):
    with ResultsFile(tmp_path) as results:
        results.add(finished(0))
        with pytest.raises(ResultsError, match=f"-> {'x' * 59}…"):
            results.refuse_another_experiment(finished(0).case.with_changes(prompt="x" * 5000), {})


def test_results_that_are_set_aside_take_the_next_free_name(tmp_path):
    assert set_aside(tmp_path) is None
    assert set_aside(tmp_path / "none") is None
    (tmp_path / "results.jsonl.1").write_text("something of the user's")
    with ResultsFile(tmp_path) as results:
        results.add(finished(0))
        with pytest.raises(ResultsError, match="another run is writing"):
            set_aside(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    assert set_aside(tmp_path) == tmp_path / "results.jsonl.2"
    assert (tmp_path / "results.jsonl.2").read_bytes() == content
    assert not (tmp_path / FILE_NAME).exists()


def test_results_that_are_no_plain_file_are_refused_and_not_read(tmp_path):
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    with pytest.raises(ResultsError, match="is not a plain file"):
        ResultsFile(tmp_path)


def test_reading_a_folder_without_results_reports_the_missing_file(tmp_path):
    with pytest.raises(ResultsError, match=r"no results in .*results\.jsonl"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("facts", "host_budget"),
    [({"device": "cpu"}, "min"), ({}, "min"), ({"device": "cuda:0"}, "auto")],
    ids=["on a CPU", "failed", "on an accelerator"],
)
def test_results_from_before_host_budgets_are_read_with_what_they_were_measured_with(
    facts, host_budget, tmp_path
):
    record = json.loads(finished(0, facts=facts, memory=MEMORY).to_json())
    del record["case"]["host_budget"]
    for phase in record["memory"]["phases"]:
        del phase["shared_bytes"]
    (tmp_path / FILE_NAME).write_text(json.dumps(record) + "\n")
    (measurement,) = read_results(tmp_path)
    assert measurement.case.host_budget == host_budget
    assert measurement.case.budget == "min"
    assert measurement.memory == MEMORY
    # a run with the same settings goes on in the folder
    with ResultsFile(tmp_path) as results:
        results.refuse_another_experiment(finished(0).case.with_changes(host_budget=host_budget), {})
