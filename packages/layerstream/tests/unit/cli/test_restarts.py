"""`layerstream batch` and `score`, started again with something changed, on a real tiny checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import layerstream as ls
from layerstream.cli import backend
from layerstream.cli.app import main

ROWS: list[Any] = [
    {"id": "a", "prompt": "hello", "max_new_tokens": 3},
    {"id": "b", "prompt": 5},
    {"id": "c", "prompt": "The sea is", "max_new_tokens": 3},
]
SCORE_ROWS: list[Any] = [{"prefix": "The sky is", "suffixes": [" blue", " green"]}]

pytestmark = pytest.mark.usefixtures("quiet_terminal")


@pytest.fixture
def checkpoint(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


class Job:
    """A rows file, a results file and a model in a folder, and the command line over them."""

    def __init__(self, folder: Path, model: Path, command: str = "batch") -> None:
        self.rows, self.results = folder / "in.jsonl", folder / "out.jsonl"
        self._folder, self._model, self._command = folder, model, command

    def write_rows(self, rows: list[Any]) -> None:
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(self, *arguments: object, model: Path | None = None) -> int:
        command = [self._command, self.rows, self.results, "-m", model or self._model, "--budget", "min"]
        return main([*map(str, command), *map(str, arguments)])

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def kept_files(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("*out.jsonl*") if path != self.results)


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path) -> Job:
    job = Job(tmp_path, checkpoint)
    job.write_rows(ROWS)
    assert job.run() == 1
    return job


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["-n", "9"], "max_new_tokens: 128 -> 9"),
        (["--temperature", "0.5"], "temperature: none -> 0.5"),
        (["--seed", "1"], "seed: none -> 1"),
        (["--chat"], "chat: false -> true"),
        (["--no-packed"], "packed: true -> false"),
        (["--dtype", "bfloat16"], "dtype: auto -> bfloat16"),
        (["--attn-implementation", "eager"], "attn_implementation: none -> eager"),
    ],
)
def test_other_settings_are_refused_before_anything_is_loaded(
    arguments: list[str],
    difference: str,
    job: Job,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("layerstream.cli.row_job._load", lambda *_: pytest.fail("the model was loaded"))
    before = job.results.read_bytes()
    assert job.run(*arguments) == 2
    assert difference in capsys.readouterr().err
    assert job.results.read_bytes() == before
    assert job.kept_files() == []


def test_another_model_at_the_same_place_is_refused(
    job: Job, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = checkpoint.glob("*.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    assert job.run() == 2
    assert "the model's weights: " in capsys.readouterr().err


def test_the_same_model_at_another_place_continues(job: Job, checkpoint: Path, tmp_path: Path) -> None:
    before = job.results.read_bytes()
    assert job.run("--max-rows", "1", "--device", "cpu", model=checkpoint.rename(tmp_path / "moved")) == 1
    assert job.results.read_bytes() == before


def test_a_branch_of_the_hub_that_moves_is_refused_and_the_commit_is_what_is_loaded(
    job: Job,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository, (old, new) = tmp_path / "models--o--m", ("a" * 40, "b" * 40)
    for commit in (old, new):
        shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(old)
    loaded = []
    load = backend.load_with

    def load_noted(name: str, options: ls.LoadOptions, **keywords: Any) -> ls.StreamedModel:
        loaded.append(options.revision)
        return load(name, options, **keywords)

    monkeypatch.setattr(backend, "load_with", load_noted)
    assert job.run("--restart", model=Path("o/m")) == 1
    assert loaded == [old]
    (repository / "refs" / "main").write_text(new)
    capsys.readouterr()
    assert job.run(model=Path("o/m")) == 2
    assert f"the model's commit: {old} -> {new}" in capsys.readouterr().err
    assert job.run("--revision", old, model=Path("o/m")) == 1


def test_restart_and_resume_anyway_go_on_with_other_settings(job: Job) -> None:
    before = job.results.read_bytes()
    job.write_rows([*ROWS, {"prompt": "more"}])
    assert job.run("-n", "4", "--resume-anyway") == 1
    assert job.results.read_bytes().startswith(before)
    marks = [record.get("settings", {}).get("max_new_tokens") for record in job.records()]
    assert marks == [128, None, None, None, 4, None]
    mixed = job.results.read_bytes()
    assert job.run("-n", "5", "--restart") == 1
    assert job.kept_files() == ["out.jsonl.1"]
    assert job.results.with_name("out.jsonl.1").read_bytes() == mixed
    assert [record.get("row") for record in job.records()][:2] == [None, 2]
    assert len(job.records()) == 5


@pytest.mark.parametrize("other", ["--resume-anyway", "--retry-errors"])
def test_restart_contradicts_what_goes_on(other: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run("--restart", other) == 2
    assert other in capsys.readouterr().err
    assert job.kept_files() == []


def test_a_restart_that_cannot_begin_changes_nothing(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = job.results.read_bytes()
    assert job.run("--restart", model=tmp_path / "no-model") == 2
    assert "there is no directory" in capsys.readouterr().err
    assert job.results.read_bytes() == before
    assert job.kept_files() == []


def test_failed_rows_are_named_with_their_reasons(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 1
    error = capsys.readouterr().err
    assert "3 of 3 rows have a result, 1 of them an error" in error
    assert "  row 2 (id b): prompt must be text that is not empty; got 5" in error
    assert "--retry-errors" in error
    assert job.run("--quiet") == 1
    assert capsys.readouterr().err == ""


def test_of_many_failed_rows_the_first_are_named(
    job: Job, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = Job(tmp_path / "many", checkpoint)
    many.rows.parent.mkdir()
    many.write_rows([{"wrong": number} for number in range(13)])
    assert many.run() == 1
    lines = capsys.readouterr().err.splitlines()
    named = [line for line in lines if line.startswith("  row ")]
    assert [line.split(":")[0] for line in named] == [f"  row {number}" for number in range(1, 11)]
    assert lines[lines.index(named[-1]) + 1] == "  and 3 more"


def test_a_repaired_row_is_done_again_and_only_that(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    before = job.records()
    job.write_rows([ROWS[0], {"id": "b", "prompt": "five", "max_new_tokens": 2}, ROWS[2]])
    assert job.run() == 0
    header, *results = job.records()
    assert header == before[0]
    assert [result["row"] for result in results] == [1, 3, 2]
    assert results[:2] == [result for result in before[1:] if "error" not in result]
    assert "1 row changed since: done again" in capsys.readouterr().err
    assert job.kept_files() == []


def test_errors_are_tried_again_and_nothing_else_is(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [record for record in job.records() if "text" in record]
    monkeypatch.setattr("layerstream.cli.row_job._load", lambda *_: pytest.fail("the model was loaded"))
    assert job.run("--retry-errors") == 1
    assert job.records()[1:3] == answers
    assert [record["row"] for record in job.records()[1:]] == [1, 3, 2]


def test_rows_that_are_the_results_file_are_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    before = job.rows.read_bytes()
    job.results = job.rows
    assert job.run() == 2
    assert "the rows and the results are one file" in capsys.readouterr().err
    assert job.rows.read_bytes() == before


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null", "pipe"])
def test_special_files_are_refused_with_one_line(
    path: str, job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    rows, results = job.rows, job.results
    for job.rows, job.results in ((rows, tmp_path / path), (tmp_path / path, results)):
        capsys.readouterr()
        assert job.run() == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "not a plain file" in error


def test_scores_belong_to_the_contents_of_their_head(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, head = Job(tmp_path, checkpoint, "score"), tmp_path / "head.safetensors"
    job.write_rows(SCORE_ROWS)
    save_file({"weight": torch.ones(8, 64)}, head)
    assert job.run("--head", head) == 0
    assert job.run("--head", head) == 0
    save_file({"weight": torch.zeros(8, 64)}, head)
    capsys.readouterr()
    assert job.run("--head", head) == 2
    assert "head: head.safetensors (" in capsys.readouterr().err
    assert job.run() == 2
    assert ") -> none" in capsys.readouterr().err
    assert job.run("--head", tmp_path / "none.safetensors") == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_scores_do_not_continue_a_batch(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    job = Job(tmp_path, checkpoint, "score")
    job.write_rows(SCORE_ROWS)
    assert job.run() == 0
    assert main(["batch", str(job.rows), str(job.results), "-m", str(checkpoint)]) == 2
    assert "command: score -> batch" in capsys.readouterr().err
