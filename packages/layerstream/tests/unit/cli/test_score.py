"""`layerstream score` on a real tiny checkpoint: each row once, the library's scores, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.job_files import results_of, write_lines
from safetensors.torch import save_file

import layerstream as ls
from layerstream.cli.app import main

ROWS = [
    {"id": "sky", "prefix": "The sky is", "suffixes": [" blue", " green", " a fish"]},
    {"id": "sum", "prefix": [10, 11, 12], "suffixes": [[13], [14, 15]]},
    {"prefix": "", "suffixes": ["once", "upon"]},
]

pytestmark = pytest.mark.usefixtures("quiet_terminal")


def expected_for(path: Path, **settings: Any) -> list[ls.ScoringResult]:
    with ls.load(path, budget="min") as streamed:
        return ls.score(streamed, [(row["prefix"], row["suffixes"]) for row in ROWS], **settings)  # type: ignore[misc]


@pytest.mark.parametrize("command", ["score", "batch"])
def test_every_row_gets_the_librarys_scores(
    command: str, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", *ROWS), tmp_path / "out.jsonl"
    assert main([command, str(source), str(target), "-m", str(tiny_llama_dir), "--budget", "min"]) == 0
    results = results_of(target)
    for number, expected in enumerate(expected_for(tiny_llama_dir), start=1):
        assert results[number]["best"] == expected.best
        for fields, score in zip(results[number]["scores"], expected.scores, strict=True):
            assert fields["logprob"] == fields["sum"] == score.sum
            assert fields["token_logprobs"] == score.token_logprobs.tolist()
    assert [results[n]["id"] for n in (1, 2, 3)] == ["sky", "sum", 3]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 of 3 rows have a result" in captured.err


def test_a_head_from_a_file_scores(tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.arange(8.0 * 64).reshape(8, 64) / 512}, tmp_path / "head.safetensors")
    source, target = write_lines(tmp_path / "in.jsonl", *ROWS), tmp_path / "out.jsonl"
    head = tmp_path / "head.safetensors"
    assert (
        main(["score", str(source), str(target), "-m", str(tiny_llama_dir), "--head", str(head), "-q"]) == 0
    )
    results = results_of(target)
    for number, expected in enumerate(expected_for(tiny_llama_dir, head=head), start=1):
        assert [fields["outputs"] for fields in results[number]["scores"]] == [
            score.outputs.tolist() for score in expected.scores
        ]
        assert results[number]["scores"][0]["mean"] == expected.scores[0].mean
        assert "logprob" not in results[number]["scores"][0]


def test_a_bad_row_becomes_an_error_row_and_the_rest_is_scored(tiny_llama_dir: Path, tmp_path: Path) -> None:
    bad: list[Any] = [
        {"prefix": "a", "suffixes": []},
        {"prefix": "a", "suffixes": ["b", ""]},
        {"prefix": "a"},
        {"prefix": "a", "suffixes": "b"},
        {"prefix": [500], "suffixes": [[5]]},
        {"prompt": "a"},
        "not json",
    ]
    source, target = write_lines(tmp_path / "in.jsonl", *bad, ROWS[0]), tmp_path / "out.jsonl"
    assert main(["score", str(source), str(target), "-m", str(tiny_llama_dir), "-q"]) == 1
    results = results_of(target)
    assert [number for number, result in results.items() if "error" not in result] == [8]
    assert "no suffixes" in results[1]["error"]
    assert "suffix 1" in results[2]["error"]
    assert "a prefix and suffixes" in results[6]["error"]


def test_started_again_it_scores_the_remaining_rows(tiny_llama_dir: Path, tmp_path: Path) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", *ROWS), tmp_path / "out.jsonl"
    assert main(["score", str(source), str(target), "-m", str(tiny_llama_dir), "-q"]) == 0
    lines = target.read_bytes().splitlines(keepends=True)
    # a kill in the middle of the second line leaves this
    target.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    assert main(["score", str(source), str(target), "-m", str(tiny_llama_dir), "-q"]) == 0
    assert sorted(target.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_rows_of_both_kinds_share_a_batch(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "hello", "max_new_tokens": 3}, ROWS[0]]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(target), "-m", str(tiny_llama_dir), "-q"]) == 0
    results = results_of(target)
    assert results[1]["new_tokens"] == 3
    assert len(results[2]["scores"]) == 3
