"""Where rows are: what means a file and what a data set, and files whose columns have other names."""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from kit.job_files import write_lines

import layerstream as ls
from layerstream.cli.jobs import JobRow
from layerstream.cli.row_columns import Columns
from layerstream.cli.row_sources import RowSource, read_source


def read(text: str | Path, command: str = "batch", **settings: Any) -> list[JobRow]:
    source = RowSource(text=str(text), **settings)
    return read_source(source, command=command, local_files_only=True, shown=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "is_dataset"),
    [
        ("openai/gsm8k", True),
        ("openai/gsm8k@main", True),
        ("owner/data-v1.5", True),
        ("hf://datasets/openai/gsm8k", True),
        ("hf://datasets/squad", True),
        ("rows.jsonl", False),
        ("data/rows.jsonl", False),
        ("data/rows.parquet", False),
        ("./data/rows", False),
        ("../data/rows", False),
        ("/data/rows", False),
        ("~/rows", False),
        ("rows", False),
        ("a/b/c", False),
    ],
)
def test_what_is_not_here_is_a_data_set_only_if_it_looks_like_one(
    text: str, is_dataset: bool, here: Path
) -> None:
    assert RowSource(text=text).is_dataset is is_dataset


def test_a_file_of_that_name_comes_first_and_a_folder_is_a_data_set(here: Path) -> None:
    (here / "owner").mkdir()
    (here / "owner" / "rows").write_text('{"prompt": "x"}\n')
    assert not RowSource(text="owner/rows").is_dataset
    assert [row.fields for row in read("owner/rows")] == [{"prompt": "x"}]
    assert RowSource(text="owner").is_dataset


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("openai/gsm8k", ("openai/gsm8k", None)),
        ("openai/gsm8k@v1.0", ("openai/gsm8k", "v1.0")),
        ("hf://datasets/openai/gsm8k@refs%2Fpr%2F1", ("openai/gsm8k", "refs/pr/1")),
        ("hf://datasets/squad/", ("squad", None)),
    ],
)
def test_the_revision_is_behind_the_name(text: str, place: tuple[str, str | None]) -> None:
    assert RowSource(text=text).hub_place() == place


@pytest.mark.parametrize("text", ["hf://datasets/a/b/c", "hf://datasets/", "hf://datasets/a/b@r/x"])
def test_a_url_of_no_data_set_is_refused(text: str) -> None:
    with pytest.raises(ls.JobError, match="names no data set of the Hub; write owner/name"):
        RowSource(text=text).hub_place()


def test_a_file_that_is_not_there_is_reported_as_ever(here: Path) -> None:
    for text in ("data/rows.jsonl", "./data/rows", "rows"):
        with pytest.raises(ls.JobError, match=f"cannot read the rows {os.path.normpath(text)}: No such file"):
            read(text)


@pytest.mark.parametrize("settings", [{"config": "main"}, {"split": "test"}])
def test_a_file_has_no_splits(settings: dict[str, str], tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", {"prompt": "x"})
    with pytest.raises(ls.JobError, match=r"--config and --split are for a data set, and .*names a file"):
        read(rows, **settings)


def test_without_the_package_one_error_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == "datasets" else find_spec(name)

    monkeypatch.setattr("layerstream.cli.row_sources.find_spec", find)
    (here / "folder").mkdir()
    with pytest.raises(
        ls.JobError, match=r"owner/name is no file here.*pip install 'layerstream\[datasets\]'"
    ):
        read("owner/name")
    with pytest.raises(ls.JobError, match=r"folder is a folder; .*pip install 'layerstream\[datasets\]'"):
        read("folder")


CHAT = [{"role": "user", "content": "hi"}]


def test_a_named_column_is_the_prompt_and_the_rest_is_left_out(tmp_path: Path) -> None:
    rows = write_lines(
        tmp_path / "rows.jsonl",
        {"id": "a", "question": "x", "prompt": "not this", "options": ["A", "B"]},
        {"question": CHAT, "answer": 3},
        {"question": [5, 6]},
        {"id": "d", "answer": 3, "question": None},
        {"id": "e", "question": 7},
    )
    found = read(rows, columns=Columns(prompt="question"))
    assert [(row.number, row.id, row.fields) for row in found] == [
        (1, "a", {"prompt": "x"}),
        (2, 2, {"messages": CHAT}),
        (3, 3, {"ids": [5, 6]}),
        (4, "d", {"answer": 3}),
        (5, "e", {"prompt": 7}),
    ]
    errors = [row.error for row in found]
    assert errors == [None, None, None, "the row has nothing in 'question'; it has id, answer", None]


def test_with_a_named_column_the_id_is_the_id_also_of_a_row_that_has_nothing_there(tmp_path: Path) -> None:
    rows = write_lines(
        tmp_path / "rows.jsonl",
        {"id": "a", "custom_id": "not this", "question": "x"},
        {"id": "b", "custom_id": "not this", "question": None},
        {"custom_id": "not this"},
    )
    assert [row.id for row in read(rows, columns=Columns(prompt="question"))] == ["a", "b", 3]
    assert [row.id for row in read(rows)] == ["not this"] * 3


def test_only_what_is_read_of_a_row_makes_it_another_row(tmp_path: Path) -> None:
    def digest_of(record: dict[str, Any], **columns: str) -> str:
        (row,) = read(write_lines(tmp_path / "row.jsonl", record), columns=Columns(**columns))
        return row.digest

    digest = digest_of({"id": 1, "question": "x", "answer": "y"}, prompt="question")
    assert digest_of({"answer": "z", "question": "x", "id": 1}, prompt="question") == digest
    assert digest_of({"id": 1, "question": "other"}, prompt="question") != digest
    assert digest_of({"id": 2, "question": "x"}, prompt="question") != digest
    assert digest_of({"id": 1, "question": "x", "answer": "y"}, prompt="answer") != digest


def test_a_column_that_no_row_has_is_refused_at_once(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", {"question": "x"}, {"question": "y"})
    with pytest.raises(
        ls.JobError, match=r"no row of .* can be read, .*nothing in 'qestion'; it has question"
    ):
        read(rows, columns=Columns(prompt="qestion"))


def test_prefix_and_suffixes_may_have_other_names_too(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", {"ctx": "a", "suffixes": ["b"], "label": 0})
    (row,) = read(rows, "score", columns=Columns(prefix="ctx"))
    assert row.fields == {"prefix": "a", "suffixes": ["b"]}


def test_parquet_files_have_columns_too(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"id": ["a", "b"], "question": ["x", "y"], "answer": [1, 2]})
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet", columns=Columns(prompt="question"))
    assert [(row.id, row.fields) for row in found] == [("a", {"prompt": "x"}), ("b", {"prompt": "y"})]


def test_empty_cells_inside_a_cell_are_as_keys_that_are_not_there(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    options = [{"top_k": 5}, {"top_p": 0.5}]
    pq.write_table(pa.table({"prompt": ["x", "y"], "options": options}), tmp_path / "rows.parquet")
    assert [row.fields["options"] for row in read(tmp_path / "rows.parquet")] == options
