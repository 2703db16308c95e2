"""What workers keep of finished rows until they are written: parts that need no running Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import LocalFileSystem

import layerstream as ls
from layerstream.ray import kept_rows
from layerstream.ray.kept_rows import KeptFolder, KeptRows
from layerstream.ray.loading import WorkerModel
from layerstream.ray.rows import PromptColumn, RowAnswer, ScoreColumns
from layerstream.ray.scoring_worker import ScoringWork, ScoringWorker

COLUMN = PromptColumn(name="text", max_new_tokens=4)


@pytest.fixture
def folder(tmp_path: Path) -> KeptFolder:
    return KeptFolder(filesystem=LocalFileSystem(), path=f"{tmp_path}/kept", id_column="id")


def kept_rows_of(folder: KeptFolder | None, settings: str = "settings") -> KeptRows:
    return KeptRows(folder, settings, ["text"])


class Upper:
    """Answers each row with its text in capitals, and notes which rows it was given."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    async def __call__(self, block: pa.Table) -> pa.Table:
        self.ids += block["id"].to_pylist()
        texts = block["text"].to_pylist()
        answers = [RowAnswer(text=text.upper(), tokens=(len(text),), finish_reason="stop") for text in texts]
        return COLUMN.table(block, answers)


def block_of(ids: Sequence[int], text: str = "row") -> pa.Table:
    return pa.table({"id": list(ids), "text": [f"{text} {number}" for number in ids]})


def completed(kept: KeptRows, block: pa.Table) -> tuple[pa.Table, list[int]]:
    """Return the completed block, and the rows that had to be computed for it."""
    upper = Upper()
    return asyncio.run(kept.completed(block, upper)), upper.ids


def test_kept_rows_are_not_computed_again_in_whatever_blocks_they_come(folder: KeptFolder) -> None:
    kept = kept_rows_of(folder)
    for ids in (range(4), range(4, 8)):
        assert completed(kept, block_of(ids))[1] == list(ids)
    later = kept_rows_of(folder)
    mixed = block_of([9, 5, 2, 8])
    table, computed = completed(later, mixed)
    assert computed == [9, 8]
    assert table.equals(asyncio.run(Upper()(mixed)))
    known = block_of(range(3, 7))
    table, computed = completed(later, known)
    assert computed == []
    assert table.equals(asyncio.run(Upper()(known)))


def test_other_rows_and_other_settings_are_computed(folder: KeptFolder) -> None:
    completed(kept_rows_of(folder), block_of(range(4)))
    assert completed(kept_rows_of(folder), block_of(range(4), "changed"))[1] == [0, 1, 2, 3]
    assert completed(kept_rows_of(folder, "others"), block_of(range(4)))[1] == [0, 1, 2, 3]


@pytest.mark.parametrize("ids", [["a", "b"], pa.array([2**63, 2], pa.uint64()), [b"a", b"b"]])
def test_rows_may_have_any_kind_of_id(folder: KeptFolder, ids: Sequence[object]) -> None:
    block = pa.table({"id": ids, "text": ["x", None]})

    async def plain(rows: pa.Table) -> pa.Table:
        return COLUMN.table(rows, [RowAnswer(text="y")] * rows.num_rows)

    first = asyncio.run(kept_rows_of(folder).completed(block, plain))
    again, computed = completed(kept_rows_of(folder), block)
    assert computed == []
    assert again.equals(first)


def test_rows_without_the_column_that_tells_them_apart_are_refused(folder: KeptFolder) -> None:
    with pytest.raises(ls.PlanError, match="there is no column id: the rows have text"):
        completed(kept_rows_of(folder), pa.table({"text": ["x"]}))


def test_scores_come_back_as_they_were(folder: KeptFolder, tiny_llama_dir: Path) -> None:
    options = ls.LoadOptions(budget="min", workload=ls.Workload(prompt_tokens=16, new_tokens=0))
    columns = ScoreColumns(prefix="p", suffixes="s")
    rows = pa.table({"id": [0, 1, 2], "p": ["ab", "x", ""], "s": [["c", "de"], ["yes", "no"], ["z"]]})

    def scored(block: pa.Table, kept: KeptFolder | None) -> pa.Table:
        model = WorkerModel.of(tiny_llama_dir, options)
        worker = ScoringWorker(ScoringWork(model=model, columns=columns, kept=kept))
        try:
            return asyncio.run(worker(block))
        finally:
            worker.close()

    scored(rows.slice(0, 1), folder)
    assert scored(rows, folder).equals(scored(rows, None))
    [newest] = [table for path in folder.paths() if (table := folder.read(path)) and table.num_rows == 2]
    assert newest["id"].to_pylist() == [1, 2]


def test_what_was_kept_under_another_budget_counts(tiny_llama_dir: Path) -> None:
    def settings(**options: str) -> object:
        return WorkerModel.of(tiny_llama_dir, ls.LoadOptions(**options)).result_settings

    assert settings(budget="1 GiB") == settings(budget="min")
    assert settings(budget="min", dtype="float16") != settings(budget="min", dtype="float32")


def test_half_a_file_of_a_killed_worker_does_not_count(folder: KeptFolder) -> None:
    completed(kept_rows_of(folder), block_of(range(4)))
    [path] = map(Path, folder.paths())
    path.write_bytes(path.read_bytes()[:-20])
    assert completed(kept_rows_of(folder), block_of(range(4)))[1] == [0, 1, 2, 3]


def test_a_worker_keeps_its_latest_blocks_only(folder: KeptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "_MOST_FILES", 2)
    kept = kept_rows_of(folder)
    for ids in (range(4), range(4, 8), range(8, 12)):
        completed(kept, block_of(ids))
    assert len(folder.paths()) == 2
    assert completed(kept_rows_of(folder), block_of([0, 4, 8]))[1] == [0]


def test_a_folder_that_cannot_be_written_costs_no_row(
    folder: KeptFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = kept_rows_of(folder)
    (tmp_path / "kept").write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        table, computed = completed(kept, block_of(range(4)))
    assert computed == [0, 1, 2, 3]
    assert table["answer"].to_pylist() == ["ROW 0", "ROW 1", "ROW 2", "ROW 3"]
    assert "is not kept" in caplog.text


def test_what_cannot_be_read_ends_no_worker(folder: KeptFolder, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file in its place")
    assert completed(kept_rows_of(folder), block_of(range(4)))[1] == [0, 1, 2, 3]


def test_nothing_is_kept_without_a_folder() -> None:
    table, computed = completed(kept_rows_of(None), block_of(range(4)))
    assert computed == [0, 1, 2, 3]
    assert table.num_rows == 4
