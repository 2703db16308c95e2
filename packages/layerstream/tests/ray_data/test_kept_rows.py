"""What workers keep of finished rows until they are written: parts that need no running Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

import layerstream as ls
from layerstream.ray import kept_rows
from layerstream.ray.kept_rows import KeptFolder, KeptRows
from layerstream.ray.progress import JobProgress
from layerstream.ray.rows import PromptColumn, RowAnswer, ScoreColumns
from layerstream.uses.scoring.results import ScoringResult, SuffixScore

COLUMN = PromptColumn(name="text", max_new_tokens=4)


@pytest.fixture
def folder(tmp_path: Path) -> KeptFolder:
    return KeptFolder(filesystem=LocalFileSystem(), path=f"{tmp_path}/kept", id_column="id")


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
    kept = KeptRows(folder, "settings")
    for ids in (range(4), range(4, 8)):
        assert completed(kept, block_of(ids))[1] == list(ids)
    later = KeptRows(folder, "settings")
    mixed = block_of([9, 5, 2, 8])
    table, computed = completed(later, mixed)
    assert computed == [9, 8]
    assert table.equals(asyncio.run(Upper()(mixed)))
    known = block_of(range(3, 7))
    table, computed = completed(later, known)
    assert computed == []
    assert table.equals(asyncio.run(Upper()(known)))


def test_other_rows_and_other_settings_are_computed(folder: KeptFolder) -> None:
    completed(KeptRows(folder, "settings"), block_of(range(4)))
    assert completed(KeptRows(folder, "settings"), block_of(range(4), "changed"))[1] == [0, 1, 2, 3]
    assert completed(KeptRows(folder, "others"), block_of(range(4)))[1] == [0, 1, 2, 3]


def test_scores_come_back_as_they_were(folder: KeptFolder) -> None:
    block = pa.table({"id": [0, 1], "prefix": ["a", "b"], "suffixes": [["x"], ["y"]]})
    columns = ScoreColumns(prefix="prefix", suffixes="suffixes")
    score = SuffixScore(
        sum=-1.5,
        mean=-0.5,
        token_logprobs=np.float32([-0.25, -0.5, -0.75]),
        is_greedy=True,
        outputs=np.float32([]),
        prefix_tokens=2,
        suffix_tokens=3,
    )
    results = [ScoringResult(index=0, scores=(score,)), ScoringResult(index=1, error=ValueError("no"))]

    async def scored(rows: pa.Table) -> pa.Table:
        return columns.table(rows, results)

    async def refused(rows: pa.Table) -> pa.Table:
        raise AssertionError("all rows are kept")

    first = asyncio.run(KeptRows(folder, "settings").completed(block, scored))
    assert asyncio.run(KeptRows(folder, "settings").completed(block, refused)).equals(first)


def test_half_a_file_of_a_killed_worker_does_not_count(folder: KeptFolder) -> None:
    completed(KeptRows(folder, "settings"), block_of(range(4)))
    [path] = map(Path, folder.tables())
    path.write_bytes(path.read_bytes()[:-20])
    assert completed(KeptRows(folder, "settings"), block_of(range(4)))[1] == [0, 1, 2, 3]


def test_a_worker_keeps_its_latest_blocks_only(folder: KeptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "MOST_FILES", 2)
    kept = KeptRows(folder, "settings")
    for ids in (range(4), range(4, 8), range(8, 12)):
        completed(kept, block_of(ids))
    assert len(folder.tables()) == 2
    assert completed(KeptRows(folder, "settings"), block_of([0, 4, 8]))[1] == [0]


def test_a_folder_that_cannot_be_written_costs_no_row(
    folder: KeptFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptRows(folder, "settings")
    (tmp_path / "kept").write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        table, computed = completed(kept, block_of(range(4)))
    assert computed == [0, 1, 2, 3]
    assert table["answer"].to_pylist() == ["ROW 0", "ROW 1", "ROW 2", "ROW 3"]
    assert "is not kept" in caplog.text


def test_only_what_is_written_is_forgotten(tmp_path: Path) -> None:
    progress = JobProgress.of(tmp_path, "id")
    assert progress is not None
    kept = KeptRows(progress.kept, "settings")
    for ids in (range(4), range(4, 8), range(8, 12)):
        completed(kept, block_of(ids))
    (tmp_path / "written").mkdir()
    # the second block is recorded in part, and the third as one that is being written
    pq.write_table(pa.table({"id": range(6)}), tmp_path / "written" / "0.parquet")
    pq.write_table(pa.table({"id": range(8, 12)}), tmp_path / "written" / "1.pending.parquet")
    progress.forget_written()
    ids = [table["id"].to_pylist() for table in progress.kept.tables(["id"]).values()]
    assert sorted(ids) == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_folder_for_progress_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ls.PlanError, match=r"progress_dir=nowhere://x with id_column='id' cannot be used: "):
        JobProgress.of("nowhere://x", "id")
    with pytest.raises(ls.PlanError, match="give both id_column and progress_dir, or neither"):
        JobProgress.of(tmp_path, None)
    (tmp_path / "kept").write_text("a file in its place")
    progress = JobProgress.of(tmp_path, "id")
    assert progress is not None
    with pytest.raises(ls.PlanError, match=f"progress_dir={tmp_path} cannot be read: "):
        progress.forget_written()


def test_what_cannot_be_read_ends_no_worker(folder: KeptFolder, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file in its place")
    assert completed(KeptRows(folder, "settings"), block_of(range(4)))[1] == [0, 1, 2, 3]


def test_nothing_is_kept_without_a_folder() -> None:
    table, computed = completed(KeptRows(None, "settings"), block_of(range(4)))
    assert computed == [0, 1, 2, 3]
    assert table.num_rows == 4
