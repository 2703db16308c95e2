"""Rows in, results out, each exactly once, whenever the process is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import layerstream as ls
from layerstream.cli.jobs import ResultFile, read_rows

LINES = [
    '{"id": "a", "prompt": "x"}',
    "",
    '{"prompt": "Ünïcödé"}',
    "not json",
    "[1, 2]",
    '{"id": {"deep": 1}, "prompt": "y"}',
]


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_rows_have_numbers_ids_and_errors(rows_path: Path) -> None:
    rows = read_rows(rows_path)
    assert [(row.number, row.id) for row in rows] == [(1, "a"), (3, 3), (4, 4), (5, 5), (6, {"deep": 1})]
    assert [row.error is None for row in rows] == [True, True, False, False, True]
    assert rows[1].fields == {"prompt": "Ünïcödé"}


def test_a_file_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ls.JobError, match="cannot read the rows"):
        read_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(ls.JobError, match="cannot open the results"):
        ResultFile(tmp_path / "no" / "folder.jsonl", [])


def test_cut_off_at_any_byte_only_whole_results_count(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with ResultFile(path, rows) as file:
        for row in rows:
            file.write(row, {"text": "Käse\nund Brot"} if row.error is None else {"error": row.error})
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        with ResultFile(path, rows) as file:
            assert len(file.done) == content[:length].count(b"\n")
            for row in rows:
                if row.number not in file.done:
                    file.write(row, {"text": "again"})
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert sorted(result["row"] for result in results) == [row.number for row in rows]
        assert len({result["digest"] for result in results}) == len(rows)


def test_a_result_file_in_use_is_refused(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with ResultFile(path, rows), pytest.raises(ls.JobError, match="another process"):
        ResultFile(path, rows)
    ResultFile(path, rows).close()


@pytest.mark.parametrize(
    "content",
    ["my precious notes\n", "my precious notes", '{"other": 1}\n', '{"row": 99, "digest": "x"}\n', "[]\n"],
)
def test_a_file_that_holds_something_else_is_not_changed(
    content: str, rows_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(ls.JobError, match="is not a result of this job"):
        ResultFile(path, read_rows(rows_path))
    assert path.read_text() == content


def test_results_of_rows_that_have_changed_are_refused(rows_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = read_rows(rows_path)
    with ResultFile(path, rows) as file:
        file.write(rows[0], {"text": "answer"})
    rows_path.write_text("\n".join(['{"id": "a", "prompt": "another"}', *LINES[1:]]), encoding="utf-8")
    with pytest.raises(ls.JobError, match="row 1 has changed since"):
        ResultFile(path, read_rows(rows_path))
    rows_path.write_text("\n".join([*LINES, '{"prompt": "one more"}']), encoding="utf-8")
    with ResultFile(path, read_rows(rows_path)) as file:
        assert file.done == {1}


def test_a_disk_that_refuses_to_write_is_reported(
    rows_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    rows = read_rows(rows_path)
    with ResultFile(tmp_path / "out.jsonl", rows) as file:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(ls.JobError, match="No space left on device; start again to continue"):
            file.write(rows[0], {"text": "answer"})
        assert file.done == set()
