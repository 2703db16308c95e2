"""Rows of a data set in a folder: which split, configuration and columns, which ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import layerstream as ls
from layerstream.cli.jobs import JobRow
from layerstream.cli.row_columns import Columns
from layerstream.cli.row_sources import RowSource, read_source

datasets = pytest.importorskip("datasets")

QUESTIONS = [
    {"id": "a", "question": "one", "answer": "1", "options": ["1", "2"]},
    {"id": "b", "question": "two", "answer": "2", "options": ["1", "2"]},
    {"id": "c", "question": "three", "answer": "3", "options": ["1", "2"]},
]
QUESTION = Columns(prompt="question")
CONFIGS = """---
configs:
- config_name: main
  data_files: main.jsonl
- config_name: socratic
  data_files: socratic.jsonl
---
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read(folder: Path, command: str = "batch", *, shown: bool = False, **settings: Any) -> list[JobRow]:
    source = RowSource(text=str(folder), **settings)
    return read_source(source, command=command, local_files_only=True, shown=shown)


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def prompts_of(rows: list[JobRow]) -> list[Any]:
    return [row.fields["prompt"] for row in rows]


def test_the_named_column_is_read_and_a_note_says_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "sums", test=QUESTIONS)
    rows = read(folder, columns=QUESTION, shown=True)
    assert [(row.number, row.id, row.fields, row.error) for row in rows] == [
        (1, "a", {"prompt": "one"}, None),
        (2, "b", {"prompt": "two"}, None),
        (3, "c", {"prompt": "three"}, None),
    ]
    said = " ".join(capsys.readouterr().err.split())
    assert said == "sums, default, test: 3 rows; read: id, question; left out: answer, options"


def test_without_a_named_column_the_columns_are_the_keys_of_a_row(tmp_path: Path) -> None:
    records = [
        {"prompt": "x", "max_new_tokens": 3, "source": "web"},
        {"prompt": "y", "max_new_tokens": None, "source": "book"},
    ]
    rows = read(write(tmp_path / "rows", train=records))
    assert [row.fields for row in rows] == [{"prompt": "x", "max_new_tokens": 3}, {"prompt": "y"}]


def test_of_prompt_and_messages_the_first_that_a_row_has_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = [{"role": "user", "content": "hi"}]
    records = [{"prompt": "x", "messages": chat}, {"prompt": None, "messages": chat}]
    rows = read(write(tmp_path / "rows", train=records), shown=True)
    assert [row.fields for row in rows] == [{"prompt": "x"}, {"messages": chat}]
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("2 rows; read: prompt, messages (of prompt and messages, the first that a row has)")


def test_keys_that_only_other_turns_have_are_not_in_a_conversation(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi", "name": "Ann"}, {"role": "assistant", "content": "hello"}]
    rows = read(
        write(tmp_path / "rows", train=[{"conversation": chat}]), columns=Columns(prompt="conversation")
    )
    assert rows[0].fields == {"messages": chat}


def test_ids_that_are_not_unique_give_way_to_the_number_of_the_row(tmp_path: Path) -> None:
    for ids in (["a", "a"], ["a", None], [0.5, 1.5]):
        records = [{"id": each, "prompt": "x"} for each in ids]
        assert [row.id for row in read(write(tmp_path / "rows", train=records))] == [1, 2]


def test_several_splits_and_none_chosen_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", train=QUESTIONS[:1], test=QUESTIONS[1:])
    with pytest.raises(ls.JobError, match="several splits; choose one with --split: train, test"):
        read(folder, columns=QUESTION)
    with pytest.raises(ls.JobError, match="has no split 'dev'; choose one with --split: train, test"):
        read(folder, columns=QUESTION, split="dev")


@pytest.mark.parametrize(
    ("split", "prompts"),
    [
        ("test", ["two", "three"]),
        ("test[:1]", ["two"]),
        ("test[-1:]", ["three"]),
        ("test[:50%]", ["two"]),
        ("test[1:] + train", ["three", "one"]),
        ("all", ["one", "two", "three"]),
    ],
)
def test_a_split_may_be_cut_and_added_to_another(split: str, prompts: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", train=QUESTIONS[:1], test=QUESTIONS[1:])
    assert prompts_of(read(folder, columns=QUESTION, split=split)) == prompts


def test_splits_need_not_have_the_same_columns_or_types(tmp_path: Path) -> None:
    train = datasets.Dataset.from_list([{"question": "one", "answer": 1}])
    test = datasets.Dataset.from_list([{"question": "two", "answer": "2", "hint": "x"}])
    folder = tmp_path / "sums"
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder)
    for split in ("all", "train+test"):
        assert prompts_of(read(folder, columns=QUESTION, split=split)) == ["one", "two"]
    assert prompts_of(read(folder, columns=Columns(prompt="answer"), split="all")) == [1, "2"]
    errors = [row.error for row in read(folder, columns=Columns(prompt="hint"), split="all")]
    assert errors == ["the row has nothing in 'hint'; it has nothing at all", None]


def test_a_split_that_is_cut_wrongly_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ls.JobError, match=r"--split test\[1 cannot be read .*such as test\[:100\]"):
        read(write(tmp_path / "sums", test=QUESTIONS), columns=QUESTION, split="test[1")


def test_several_configurations_and_none_chosen_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", main=QUESTIONS[:1], socratic=QUESTIONS[1:])
    (folder / "README.md").write_text(CONFIGS)
    with pytest.raises(ls.JobError, match="several configurations; choose one with --config: main, socratic"):
        read(folder, columns=QUESTION)
    with pytest.raises(
        ls.JobError, match="no configuration 'mian'; choose one with --config: main, socratic"
    ):
        read(folder, columns=QUESTION, config="mian")
    assert prompts_of(read(folder, columns=QUESTION, config="socratic")) == ["two", "three"]


def test_an_error_that_is_not_about_configurations_is_reported_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "sums", main=QUESTIONS[:1], socratic=QUESTIONS[1:])
    (folder / "README.md").write_text(CONFIGS)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("the card is damaged")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(ls.JobError, match=r"sums cannot be read: ValueError: the card is damaged$"):
        read(folder, columns=QUESTION)


def test_a_download_that_breaks_off_is_not_taken_for_a_data_set_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object, **__: object) -> None:
        raise ConnectionError("Server Disconnected")

    monkeypatch.setattr("datasets.DatasetBuilder.download_and_prepare", break_off)
    with pytest.raises(
        ls.JobError, match=r"sums cannot be downloaded: Server Disconnected; run it again to go on$"
    ):
        read(write(tmp_path / "sums", test=QUESTIONS), columns=QUESTION)


def test_a_default_configuration_need_not_be_chosen(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", main=QUESTIONS[:1], socratic=QUESTIONS[1:])
    (folder / "README.md").write_text(
        CONFIGS.replace("config_name: main", "config_name: main\n  default: true")
    )
    assert prompts_of(read(folder, columns=QUESTION)) == ["one"]


@pytest.mark.parametrize(
    ("command", "columns", "message"),
    [
        ("batch", Columns(), "no column prompt, messages or ids; say with --prompt-column .*: id, question"),
        ("batch", Columns(prompt="q"), "has no column 'q'; choose one with --prompt-column: id, question"),
        (
            "score",
            Columns(),
            "no columns prefix and suffixes; say with --prefix-column and --suffixes-column",
        ),
        ("score", Columns(prefix="question"), "no column 'suffixes'; choose one with --suffixes-column: id"),
    ],
)
def test_a_column_that_is_missing_is_reported_once_with_the_columns(
    command: str, columns: Columns, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ls.JobError, match=message):
        read(write(tmp_path / "sums", test=QUESTIONS), command, columns=columns)


def test_rows_to_score_come_from_a_data_set_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", test=QUESTIONS[:1])
    (row,) = read(folder, "score", columns=Columns(prefix="question", suffixes="options"))
    assert (row.id, row.fields) == ("a", {"prefix": "one", "suffixes": ["1", "2"]})
    (own,) = read(write(tmp_path / "own", test=[{"prefix": "x", "suffixes": ["y"], "label": 0}]), "batch")
    assert own.fields == {"prefix": "x", "suffixes": ["y"]}


def test_csv_and_parquet_files_in_a_folder_are_read(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        folder = tmp_path / kind
        folder.mkdir()
        getattr(datasets.Dataset.from_list(QUESTIONS), f"to_{kind}")(folder / f"test.{kind}")
        assert prompts_of(read(folder, columns=QUESTION)) == ["one", "two", "three"]


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(QUESTIONS)
    table.save_to_disk(tmp_path / "one")
    assert prompts_of(read(tmp_path / "one", columns=QUESTION)) == ["one", "two", "three"]
    datasets.DatasetDict(train=table, test=table.select([2])).save_to_disk(tmp_path / "two")
    assert prompts_of(read(tmp_path / "two", columns=QUESTION, split="test")) == ["three"]
    with pytest.raises(ls.JobError, match="several splits; choose one with --split: train, test"):
        read(tmp_path / "two", columns=QUESTION)
    with pytest.raises(ls.JobError, match="without configurations: leave --config out"):
        read(tmp_path / "two", columns=QUESTION, config="main")


def test_folders_without_data_and_with_damaged_data_are_reported(tmp_path: Path) -> None:
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    damaged.mkdir()
    (damaged / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(ls.JobError, match="empty holds no files that the package datasets can read"):
        read(empty)
    with pytest.raises(ls.JobError, match=r"damaged cannot be read: .*[Pp]arquet"):
        read(damaged)


def test_a_folder_that_changes_is_read_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", test=QUESTIONS[:1])
    assert prompts_of(read(folder, columns=QUESTION)) == ["one"]
    write(folder, test=QUESTIONS)
    assert prompts_of(read(folder, columns=QUESTION)) == ["one", "two", "three"]
