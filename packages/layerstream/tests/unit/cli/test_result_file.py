"""Rows in, results out, each exactly once, whenever the process is killed; no two jobs in a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from kit.job_files import JOB, LINES, OTHER, answer_all, opened, records_of, rows_of, shape_of

import layerstream as ls
from layerstream.cli.job_header import JobHeader
from layerstream.cli.jobs import read_rows


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_a_folder_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ls.JobError, match="cannot open the results"):
        opened(tmp_path / "no" / "folder.jsonl", [])


def test_a_file_starts_with_what_made_it(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows)
    header, *results = records_of(path)
    assert header == {
        "layerstream_job": 1,
        "command": "batch",
        "model": JOB.model,
        "settings": JOB.settings,
        "versions": JOB.versions,
    }
    assert [result["row"] for result in results] == [1, 3, 4, 5, 6]


def test_cut_off_at_any_byte_only_whole_results_count(
    rows_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a thousand files, none of which has to survive this machine
    monkeypatch.setattr(os, "fsync", lambda _: None)
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        for row in rows:
            file.write(row, {"text": "Käse\nund Brot"} if row.error is None else {"error": row.error})
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        with opened(path, rows) as file:
            assert len(file.done) == max(content[:length].count(b"\n") - 1, 0)
            for row in rows:
                if row.number not in file.done:
                    file.write(row, {"text": "again"})
        header, *results = records_of(path)
        assert header["layerstream_job"] == 1
        assert sorted(result["row"] for result in results) == [row.number for row in rows]
        assert len({result["digest"] for result in results}) == len(rows)


@pytest.mark.parametrize("tail", [b"\0" * 90, b'{"row": 6, "te' + b"\0" * 40])
def test_a_line_without_its_bytes_is_cut_off_like_a_torn_one(
    tail: bytes, rows_path: Path, tmp_path: Path
) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows[:2])
    path.write_bytes(path.read_bytes() + tail)
    with opened(path, rows) as file:
        assert answer_all(file, rows[:3]) == [4]
    assert shape_of(path) == [8, (1, "answer"), (3, "answer"), (4, "error")]


def test_a_result_file_in_use_is_refused(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows), pytest.raises(ls.JobError, match="another process"):
        opened(path, rows)
    opened(path, rows).close()


def test_a_file_that_was_rewritten_is_still_in_use(tmp_path: Path) -> None:
    """The lock goes with the new file, whether the path leads there directly or by a link."""
    path, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "y"}')
    with opened(link, rows) as file:
        answer_all(file, rows)
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "z"}')
    with opened(link, rows) as file:
        for name in (path, link):
            with pytest.raises(ls.JobError, match="another process"):
                opened(name, rows)
        assert answer_all(file, rows) == [2]
    assert link.is_symlink()
    assert shape_of(path) == [8, (1, "answer"), (2, "answer")]


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
        opened(path, read_rows(rows_path))
    assert path.read_text() == content


def test_a_header_of_a_later_format_is_refused_as_such(rows_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"layerstream_job": 2}\n')
    with pytest.raises(ls.JobError, match="its format is 2, and this version of layerstream reads 1"):
        opened(path, read_rows(rows_path))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (OTHER, r"max_new_tokens: 8 -> 9; temperature: none -> 0\.5"),
        (replace(JOB, versions={"layerstream": "1", "torch": "3"}), "torch: 2 -> 3"),
        (replace(JOB, command="score"), "command: batch -> score"),
        (
            replace(JOB, model={"name": "n", "fingerprint": {"config.json": "c0", "weights": "w1"}}),
            "model: m -> n; the model's weights: w0 -> w1",
        ),
        (
            replace(JOB, model={"name": "m", "fingerprint": {"commit": "abc"}}),
            "the model's weights: w0 -> none; the model's commit: none -> abc",
        ),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_results_of_another_job_are_refused_with_both_values_and_the_options(
    job: JobHeader, message: str, *, is_finished: bool, rows_path: Path, tmp_path: Path
) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows if is_finished else rows[:2])
    before = path.read_bytes()
    with pytest.raises(ls.JobError, match=message) as raised:
        opened(path, rows, job)
    assert "--restart" in str(raised.value)
    assert "--resume-anyway" in str(raised.value)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_same_model_in_another_place_is_the_same_job(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows)
    before = path.read_bytes()
    with opened(path, rows, replace(JOB, model={**JOB.model, "name": "/scratch/job-17/m"})) as file:
        assert len(file.done) == len(rows)
    assert path.read_bytes() == before


def test_restart_begins_anew_and_keeps_the_old_results_under_another_name(
    rows_path: Path, tmp_path: Path
) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    kept = tmp_path / "out.jsonl.1"
    kept.write_text("something of the user's")
    with opened(path, rows) as file:
        answer_all(file, rows)
    before = path.read_bytes()
    with opened(path, rows, OTHER, restart=True) as file:
        assert file.done == set()
        assert "out.jsonl.2" in file.notes[0]
        answer_all(file, rows[:2], "other")
    assert shape_of(path) == [9, (1, "other"), (3, "other")]
    assert (tmp_path / "out.jsonl.2").read_bytes() == before
    assert kept.read_text() == "something of the user's"


def test_restart_takes_any_plain_file_and_loses_none(rows_path: Path, tmp_path: Path) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    path.write_text("my precious notes")
    with opened(path, rows, restart=True) as file:
        answer_all(file, rows)
    assert (tmp_path / "out.jsonl.1").read_text() == "my precious notes"
    assert shape_of(path)[0] == 8


def test_a_job_that_ended_before_its_first_result_leaves_nothing_to_keep(
    rows_path: Path, tmp_path: Path
) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    opened(path, rows).close()
    assert shape_of(path) == [8]
    opened(path, rows, OTHER).close()
    assert shape_of(path) == [9]
    opened(path, rows, restart=True).close()
    assert shape_of(path) == [8]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_resumed_anyway_the_file_marks_where_the_other_settings_begin(
    rows_path: Path, tmp_path: Path
) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows[:2])
    with opened(path, rows, OTHER, anyway=True) as file:
        assert file.done == {1, 3}
        answer_all(file, rows, "other")
    expected = [8, (1, "answer"), (3, "answer"), 9, (4, "error"), (5, "error"), (6, "other")]
    assert shape_of(path) == expected
    # from now on, it is the other job's
    with opened(path, rows, OTHER) as file:
        assert len(file.done) == len(rows)
    with pytest.raises(ls.JobError, match="max_new_tokens: 9 -> 8"):
        opened(path, rows)
    assert shape_of(path) == expected


def test_a_header_without_results_is_no_mark(rows_path: Path, tmp_path: Path) -> None:
    """A job that was resumed anyway and answered nothing has not made the results above its header."""
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows[:2])
    opened(path, rows, OTHER, anyway=True).close()
    assert shape_of(path)[-1] == 9
    opened(path, rows).close()
    assert shape_of(path) == [8, (1, "answer"), (3, "answer")]


def test_results_of_a_version_without_headers_are_refused_and_marked_as_unknown_when_resumed_anyway(
    rows_path: Path, tmp_path: Path
) -> None:
    rows, path = read_rows(rows_path), tmp_path / "out.jsonl"
    with opened(path, rows) as file:
        answer_all(file, rows[:2])
    without = b"".join(path.read_bytes().splitlines(keepends=True)[1:])
    path.write_bytes(without)
    with pytest.raises(ls.JobError, match=r"line 1 .* no line says which model and settings.*--restart"):
        opened(path, rows)
    assert path.read_bytes() == without
    with opened(path, rows, anyway=True) as file:
        answer_all(file, rows)
    assert shape_of(path)[:4] == ["unknown", (1, "answer"), (3, "answer"), 8]
    with opened(path, rows) as file:
        assert len(file.done) == len(rows)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/full"])
def test_results_to_a_device_are_refused_and_not_read(path: str, rows_path: Path) -> None:
    with pytest.raises(ls.JobError, match=f"cannot write results to {path}: this is a device"):
        opened(Path(path), read_rows(rows_path))


def test_results_to_a_folder_or_a_pipe_are_refused_and_nothing_waits(rows_path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a directory"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(ls.JobError, match=f"this is {kind}"):
            opened(path, read_rows(rows_path))


def test_a_large_file_of_something_else_is_not_read(rows_path: Path, tmp_path: Path) -> None:
    """Its one line is larger than the machine's memory, and sparse."""
    path = tmp_path / "out.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(ls.JobError, match="it does not begin like a result"):
        opened(path, read_rows(rows_path))


def test_a_disk_that_refuses_to_write_is_reported(
    rows_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    rows = read_rows(rows_path)
    with opened(tmp_path / "out.jsonl", rows) as file:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(ls.JobError, match="No space left on device; start again to continue"):
            file.write(rows[0], {"text": "answer"})
        assert file.done == set()


@pytest.mark.parametrize("name", ["fsync", "replace", "link"])
def test_a_disk_that_refuses_to_rewrite_leaves_the_file_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.jsonl"
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "y"}')
    with opened(path, rows) as file:
        answer_all(file, rows)
    before = path.read_bytes()
    rows = rows_of(tmp_path, '{"prompt": "x"}', '{"prompt": "z"}')
    with monkeypatch.context() as patched:
        patched.setattr(os, name, refuse)
        if name == "link":
            # a file system without second names: the old answer is kept all the same
            opened(path, rows).close()
            assert shape_of(tmp_path / "out.jsonl.1") == [8, (2, "answer")]
            return
        with pytest.raises(ls.JobError, match="No space left on device; start again"):
            opened(path, rows)
    assert path.read_bytes() == before
    with opened(path, rows) as file:
        assert answer_all(file, rows) == [2]
