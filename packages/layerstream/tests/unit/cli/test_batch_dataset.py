"""`layerstream batch` and `score` on a data set: the results of the same rows as JSON lines, resumed too."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.job_files import results_of, write_lines

from layerstream.cli.app import main

datasets = pytest.importorskip("datasets")

QUESTIONS = [
    {"id": f"q{number}", "question": "ab" * (number + 1), "answer": str(number), "seed": "none"}
    for number in range(5)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    (tmp_path / "sums").mkdir()
    write_lines(tmp_path / "sums" / "train.jsonl", *QUESTIONS[:1])
    write_lines(tmp_path / "sums" / "test.jsonl", *QUESTIONS[1:])
    return tmp_path / "sums"


def batch(model: Path, rows: Path, results: Path, *options: str) -> int:
    settings = ("--model", str(model), "--budget", "min", "--no-packed", "-n", "4")
    return main(["batch", str(rows), str(results), *settings, *options])


OF_TEST = ("--split", "test", "--prompt-column", "question")


def test_results_are_those_of_the_same_rows_as_lines(
    sums: Path, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(tiny_llama_dir, sums, tmp_path / "set.jsonl", *OF_TEST) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sums, default, test: 4 rows; read: id, question; left out: answer, seed" in captured.err
    lines = [{"id": each["id"], "prompt": each["question"]} for each in QUESTIONS[1:]]
    rows = write_lines(tmp_path / "rows.jsonl", *lines)
    assert batch(tiny_llama_dir, rows, tmp_path / "lines.jsonl", "--quiet") == 0
    found, expected = results_of(tmp_path / "set.jsonl"), results_of(tmp_path / "lines.jsonl")
    assert [row["id"] for row in found.values()] == ["q1", "q2", "q3", "q4"]
    for each in (*found.values(), *expected.values()):
        del each["digest"]
    assert found == expected


def test_a_job_goes_on_where_it_was_also_from_the_file_of_the_data_set(
    sums: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    assert batch(tiny_llama_dir, sums, whole, *OF_TEST, "--quiet") == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    resumed.write_bytes(b"".join(lines[:3]) + lines[3][:9])
    assert batch(tiny_llama_dir, sums, resumed, *OF_TEST, "--quiet") == 0
    assert results_of(resumed) == results_of(whole)
    assert resumed.read_bytes().startswith(b"".join(lines[:3]))
    before = resumed.read_bytes()
    assert batch(tiny_llama_dir, sums / "test.jsonl", resumed, "--prompt-column", "question", "--quiet") == 0
    assert resumed.read_bytes() == before, "nothing was left to do"


def test_a_row_of_the_data_set_that_changed_is_done_again(
    sums: Path, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    assert batch(tiny_llama_dir, sums, results, *OF_TEST, "--quiet") == 0
    changed = [{**each, "answer": "another"} for each in QUESTIONS[1:]]
    changed[2]["question"] = "changed"
    write_lines(sums / "test.jsonl", *changed)
    assert batch(tiny_llama_dir, sums, results, *OF_TEST) == 0
    assert "1 row changed since: done again" in capsys.readouterr().err
    assert batch(tiny_llama_dir, sums, results, "--split", "test", "--prompt-column", "answer") == 2
    assert "none of the 4 results" in capsys.readouterr().err


def test_what_is_not_clear_is_one_error_line(
    sums: Path, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(tiny_llama_dir, sums, tmp_path / "results.jsonl") == 2
    assert capsys.readouterr().err == (
        f"error: {sums} has several splits; choose one with --split: train, test\n"
    )
    assert not (tmp_path / "results.jsonl").exists()


def test_results_in_the_folder_of_the_rows_are_refused(
    sums: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for results in (sums / "answers.jsonl", sums / "deep" / "answers.jsonl"):
        assert batch(tiny_llama_dir, sums, results, *OF_TEST) == 2
        assert capsys.readouterr().err == (
            f"error: the results would lie in the folder of the rows, {sums}: give another place for them\n"
        )
    assert sorted(path.name for path in sums.iterdir()) == ["test.jsonl", "train.jsonl"]


def test_results_may_be_parquet(sums: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    assert batch(tiny_llama_dir, sums, tmp_path / "results.parquet", *OF_TEST, "--quiet") == 0
    found = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["id"] for row in found] == ["q1", "q2", "q3", "q4"]


def test_endings_of_a_data_set_are_scored(tiny_llama_dir: Path, tmp_path: Path) -> None:
    records = [{"ctx": "The sky is", "endings": [" blue", " a fish"], "label": 0}]
    (tmp_path / "endings").mkdir()
    write_lines(tmp_path / "endings" / "validation.jsonl", *records)
    rows = write_lines(tmp_path / "rows.jsonl", {"prefix": "The sky is", "suffixes": [" blue", " a fish"]})
    model = ("--model", str(tiny_llama_dir), "--budget", "min", "--quiet")
    columns = ("--prefix-column", "ctx", "--suffixes-column", "endings")
    assert main(["score", str(tmp_path / "endings"), str(tmp_path / "set.jsonl"), *columns, *model]) == 0
    assert main(["score", str(rows), str(tmp_path / "lines.jsonl"), *model]) == 0
    (found,), (expected,) = (results_of(tmp_path / f"{name}.jsonl").values() for name in ("set", "lines"))
    assert found["scores"] == expected["scores"]
