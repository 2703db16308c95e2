"""`benchmarks/bench_gpu.py` loses nothing when it, or a step of it, is cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from bench_gpu import STEPS, Step, stages, work_directory
from gpu_steps import lines, table
from gpu_steps.child import Case, Child, run
from gpu_steps.children import LEAST_S, Spec, Stage, Worker
from gpu_steps.lines import Found, Row

ROOT = Path(__file__).resolve().parent.parent
HEADER: dict[str, Any] = {
    "kind": "run",
    "steps": ["families", "rates"],
    "card": "A card",
    "summary": "a run",
    "facts": {"disk": "a|disk"},
}
PATIENCE_S = 240


def begin(path: Path) -> None:
    lines.append(path, **HEADER)


def add_case(path: Path, case: str, *rows: Row, step: str = "families", status: str = lines.OK) -> None:
    outcome: dict[str, Any] = {"status": status, "reason": "", "seconds": 1.0, "figures": {}}
    lines.append(path, kind="case", step=step, case=case, rows=list(rows), **outcome)


def equal(met: bool, note: str = "") -> Row:
    return Row(what="equal", target="all", met=met, note=note, tally=True, is_promise=True)


def test_a_line_that_was_cut_off_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    with path.open("a") as file:
        file.write('{"kind": "case", "step": "fam')
    add_case(path, "llama", equal(True))
    found = lines.read_run(path)
    assert [case["case"] for case in found.cases()] == ["llama"]


def test_the_last_run_in_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    add_case(path, "old")
    begin(path)
    add_case(path, "new")
    assert [case["case"] for case in lines.read_run(path).cases()] == ["new"]


def test_a_file_without_a_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no run"):
        lines.read_run(tmp_path / "empty.jsonl")


def test_tallies_are_counted_and_name_what_missed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    for case, row in {
        "a": equal(True),
        "b": equal(False, "b: one element differs"),
        "c": equal(True),
    }.items():
        add_case(path, case, row)
    found = lines.read_run(path)
    (row,) = [row for row in table.rows_of(found) if row.what == "equal"]
    assert (row.found, table.verdict(row), row.note) == ("2 of 3", "MISS", "b: one element differs")
    assert table.broken_promises(found) == ["equal"]


def test_a_slow_machine_breaks_no_promise(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    add_case(path, "host", Row(what="sweep", found="1.200", target="at most 1.08", met=False), step="rates")
    found = lines.read_run(path)
    assert "MISS" in table.as_text(found)
    assert table.broken_promises(found) == []


def test_a_case_that_has_begun_and_not_ended_is_in_the_table_as_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    lines.append(path, kind="begun", step="families", case="mixtral")
    text = table.as_markdown(lines.read_run(path))
    assert "| families: mixtral | cut off |" in text
    assert "| step rates | not run to its end |" in text


def test_a_step_that_was_cut_off_says_how_many_of_its_cases_have_a_result(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    lines.append(path, kind="count", step="families", count=88)
    add_case(path, "llama", equal(True))
    lines.append(path, kind="step", step="families", ended="time limit", note="", seconds=9.0)
    assert "| step families | time limit |  |  | 1 of 88 cases" in table.as_markdown(lines.read_run(path))


def test_a_case_that_raised_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    add_case(path, "copy", step="rates", status=lines.FAILED)
    assert table.broken_promises(lines.read_run(path)) == ["rates: copy"]


def test_a_step_whose_process_died_for_good_is_a_miss_and_one_without_time_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    for step, ended in {"families": "killed by SIGSEGV", "rates": "time limit"}.items():
        lines.append(path, kind="step", step=step, ended=ended, note="", seconds=9.0)
    assert table.broken_promises(lines.read_run(path)) == ["step families"]


def test_what_is_raised_between_two_cases_is_a_miss_that_says_why(spec: Spec) -> None:
    child = Child(
        step="families",
        device=spec.device,
        work=spec.work,
        results=spec.results,
        ends_at_s=monotonic() + PATIENCE_S,
        minutes=spec.minutes,
        is_quick=True,
        skip=frozenset(),
        shard=(0, 1),
    )

    def cases() -> Iterator[Case]:
        yield "first", 0.0, Found
        raise MemoryError("no room for the model of the others")

    run(child, cases())
    found = lines.read_run(spec.results)
    assert found.cases()[0]["status"] == lines.OK
    assert table.broken_promises(found) == ["families: what the cases share"]
    assert "no room for the model of the others" in table.as_text(found)


def test_the_files_hold_every_row_with_its_verdict(tmp_path: Path) -> None:
    path = tmp_path / "gpu_card_2026-01-01.jsonl"
    begin(path)
    add_case(path, "llama", equal(True))
    table.write_files(lines.read_run(path), path.with_suffix(""))
    assert "| equal | 1 of 1 | all | pass |" in path.with_suffix(".md").read_text()
    assert '"verdict": "pass"' in path.with_suffix(".json").read_text()


def test_steps_that_time_nothing_run_together_only_where_there_are_cores() -> None:
    steps = [STEPS[0], STEPS[1], Step(name="rates", weight=1)]
    assert stages(steps, 16) == [steps[:2], steps[2:]]
    assert stages(steps, 2) == [[step] for step in steps]


def test_what_a_killed_run_left_is_removed_and_a_running_one_is_left_alone(tmp_path: Path) -> None:
    with work_directory(tmp_path) as running:
        left = tmp_path / "layerstream-gpu-killed"
        left.mkdir()
        (left / "lock").touch()
        (left / "model.safetensors").touch()
        with work_directory(tmp_path) as own:
            assert not left.exists()
            assert running.exists()
        assert not own.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """A run of tiny models on the fake device."""
    results = tmp_path / "run.jsonl"
    begin(results)
    return Spec(device="fake", work=tmp_path, results=results, minutes=5.0, is_quick=True)


def wait_for(path: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """Return the file's lines once it has `count` of a kind."""
    ends_at_s = monotonic() + PATIENCE_S
    while monotonic() < ends_at_s:
        found = [line for line in lines.read_lines(path) if line["kind"] == kind]
        if len(found) >= count:
            return found
        sleep(0.02)
    raise AssertionError(f"{path} has no {count} lines of the kind {kind}: {lines.read_lines(path)}")


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_S)
def test_a_killed_process_loses_one_case_and_the_others_still_run(spec: Spec) -> None:
    worker = Worker(spec=spec, step="families", ends_at_s=monotonic() + PATIENCE_S)
    worker.start()
    try:
        victim = wait_for(spec.results, "begun", 1)[0]["case"]
        assert worker.process_id is not None
        os.kill(worker.process_id, signal.SIGKILL)
        ends_at_s = monotonic() + PATIENCE_S
        while not worker.poll() and monotonic() < ends_at_s:
            sleep(0.02)
    finally:
        worker.end(worker.ended)
    assert worker.ended == lines.OK
    status = {case["case"]: case["status"] for case in lines.read_run(spec.results).cases()}
    assert status.pop(victim) == lines.CUT_OFF
    assert len(status) == 3
    assert set(status.values()) == {lines.OK}
    text = table.as_text(lines.read_run(spec.results))
    assert f"families: {victim}" in text
    assert "MISS" not in text


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S)
def test_a_step_ends_at_its_limit_with_a_line_that_says_so(spec: Spec) -> None:
    Stage(workers=[Worker(spec=spec, step="families", ends_at_s=monotonic() + LEAST_S / 10)]).run()
    assert lines.read_run(spec.results).steps()["families"]["ended"] == "time limit"


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_S)
def test_a_stopped_run_keeps_its_lines_makes_its_table_and_removes_its_models(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    script = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py")]
    where = ["--device", "fake", "--quick", "--out", str(out), "--work", str(work)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "packages" / "layerstream" / "src")}
    process = subprocess.Popen([*script, *where, "--steps", "families"], env=environment)
    try:
        ends_at_s = monotonic() + PATIENCE_S
        while not (files := list(out.glob("*.jsonl"))) and monotonic() < ends_at_s:
            sleep(0.02)
        wait_for(files[0], "case", 1)
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert list(work.iterdir()) == []
    markdown = files[0].with_suffix(".md")
    assert "equal the resident model" in markdown.read_text()
    markdown.unlink()
    subprocess.run([*script, "--table-only", "--out", str(out)], check=True, env=environment)
    assert "equal the resident model" in markdown.read_text()


def test_a_row_goes_through_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    begin(path)
    row = equal(False, "a difference of 1 µs")
    add_case(path, "llama", row)
    assert lines.read_run(path).cases()[0]["rows"] == [asdict(row)]
