"""Rows that are repaired, added, moved or removed between two starts: each keeps the result of its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.job_files import LINES, answer_all, opened, records_of, rows_of, shape_of

import layerstream as ls
from layerstream.cli.jobs import read_rows


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_a_repaired_row_is_done_again_and_only_that(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows)
    rows = rows_of(tmp_path, LINES[0], "", '{"prompt": "better"}', '{"prompt": "json"}', *LINES[4:])
    with opened(path, rows) as file:
        assert file.done == {1, 5, 6}
        assert answer_all(file, rows, "new") == [3, 4]
        assert set(file.failed) == {5}
        assert "2 rows changed since: done again" in file.notes
    assert shape_of(path) == [8, (1, "answer"), (5, "error"), (6, "answer"), (3, "new"), (4, "new")]
    # the answer to the old text is kept; the error of the old text is not
    assert shape_of(tmp_path / "out.jsonl.1") == [8, (3, "answer")]


def test_a_row_whose_only_result_was_an_error_is_done_again_when_repaired(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = rows_of(tmp_path, "{torn", "{also torn")
    with opened(path, rows) as file:
        answer_all(file, rows)
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "y"}')
    with opened(path, rows) as file:
        assert answer_all(file, rows) == [1, 2]
    assert shape_of(path) == [8, (1, "answer"), (2, "answer")]


def test_rows_that_moved_keep_their_results_under_their_new_numbers(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"id": "b", "prompt": "y"}', '{"prompt": "z"}')
    with opened(path, rows) as file:
        for row in rows:
            file.write(row, {"text": row.fields["prompt"]})
    rows = rows_of(
        tmp_path, '{"prompt": "z"}', '{"prompt": "new"}', '{"prompt": "x"}', '{"id": "b", "prompt": "y"}'
    )
    with opened(path, rows) as file:
        assert answer_all(file, rows, "new") == [2]
        assert "3 results moved with their rows" in file.notes
    assert shape_of(path) == [8, (3, "x"), (4, "y"), (1, "z"), (2, "new")]
    assert [record["id"] for record in records_of(path)[1:]] == [3, "b", 1, 2]
    assert not (tmp_path / "out.jsonl.1").exists()
    before = path.read_bytes()
    with opened(path, rows) as file:
        assert len(file.done) == 4
    assert path.read_bytes() == before


def test_a_row_added_at_the_end_leaves_the_old_lines_as_they_are(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows)
    before = path.read_bytes()
    rows = rows_of(tmp_path, *LINES, '{"prompt": "one more"}')
    with opened(path, rows) as file:
        assert answer_all(file, rows) == [7]
    assert path.read_bytes().startswith(before)


def test_results_of_rows_that_are_gone_are_kept_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "y"}', '{"prompt": "z"}', "{torn")
    with opened(path, rows) as file:
        answer_all(file, rows)
    rows = rows_of(tmp_path, '{"prompt": "y"}')
    with opened(path, rows) as file:
        assert file.done == {1}
        assert any("2 results of rows that have changed or are gone: kept in" in note for note in file.notes)
    assert shape_of(path) == [8, (1, "answer")]
    assert shape_of(tmp_path / "out.jsonl.1") == [8, (1, "answer"), (3, "answer")]


def test_rows_of_another_file_are_refused(tmp_path: Path) -> None:
    """A wrong name on the command line must not clear the results of a night."""
    path = tmp_path / "out.jsonl"
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "y"}')
    with opened(path, rows) as file:
        answer_all(file, rows)
    before = path.read_bytes()
    rows = rows_of(tmp_path, '{"prompt": "p"}', '{"prompt": "q"}')
    with pytest.raises(ls.JobError, match=r"none of the 2 results .* belongs to one of these rows"):
        opened(path, rows)
    assert path.read_bytes() == before


def test_identical_rows_have_a_result_each(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = rows_of(tmp_path, *['{"prompt": "x"}'] * 3)
    with opened(path, rows) as file:
        for row in rows:
            file.write(row, {"text": f"answer {row.number}"})
    rows = rows_of(tmp_path, '{"prompt": "first"}', *['{"prompt": "x"}'] * 3)
    with opened(path, rows) as file:
        assert answer_all(file, rows) == [1]
    assert sorted(shape_of(path)[1:]) == [(1, "answer"), (2, "answer 2"), (3, "answer 3"), (4, "answer 1")]


def test_errors_are_tried_again_on_request_and_nothing_else_is(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows)
    with opened(path, rows) as file:
        assert set(file.failed) == {4, 5}
        assert len(file.done) == 5
    with opened(path, rows, retry_errors=True) as file:
        assert file.failed == {}
        assert file.done == {1, 3, 6}
        assert "2 rows with an error: done again" in file.notes
        file.write(rows[2], {"text": "now it works"})
    # killed here, the last row is still open
    with opened(path, rows) as file:
        assert file.done == {1, 3, 4, 6}
    assert shape_of(path) == [8, (1, "answer"), (3, "answer"), (6, "answer"), (4, "now it works")]
