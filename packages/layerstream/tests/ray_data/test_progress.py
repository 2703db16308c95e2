"""The folder of a job's progress: what is forgotten, and addresses that can be used. No Ray runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import layerstream as ls
from layerstream.ray.progress import JobProgress, _below, _within


def kept_ids(progress: JobProgress) -> list[list[object]]:
    """Return the ids of each block that is kept and can be read."""
    tables = map(progress.kept.read, progress.kept.paths())
    return sorted((table["id"].to_pylist() for table in tables if table is not None), key=str)


def test_only_what_is_written_is_forgotten(tmp_path: Path) -> None:
    progress = JobProgress.of(tmp_path, "id")
    assert progress is not None
    for ids in (range(4), range(4, 8), range(8, 12)):
        progress.kept.write(pa.table({"id": ids}), "kind")
    (tmp_path / "written").mkdir()
    # the second block is recorded in part, and the third as one that is being written
    pq.write_table(pa.table({"id": range(6)}), tmp_path / "written" / "0.parquet")
    pq.write_table(pa.table({"id": range(8, 12)}), tmp_path / "written" / "1.pending.parquet")
    progress.forget_written()
    assert kept_ids(progress) == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_what_cannot_be_read_is_not_forgotten(tmp_path: Path) -> None:
    progress, other = JobProgress.of(tmp_path, "id"), JobProgress.of(tmp_path, "other")
    assert progress is not None
    assert other is not None
    progress.kept.write(pa.table({"id": [1]}), "kind")
    torn = Path(progress.kept.write(pa.table({"id": [2]}), "kind"))
    torn.write_bytes(torn.read_bytes()[:-20])
    other.forget_written()
    progress.forget_written()
    assert kept_ids(progress) == [[1]]
    assert torn.exists()


def test_the_kind_of_an_id_may_change(tmp_path: Path) -> None:
    progress = JobProgress.of(tmp_path, "id")
    assert progress is not None
    for ids in (pa.array([1], pa.int32()), pa.array([2], pa.int64()), pa.array(["x"]).dictionary_encode()):
        progress.kept.write(pa.table({"id": ids}), "kind")
    (tmp_path / "written").mkdir()
    pq.write_table(pa.table({"id": pa.array([1, 3], pa.int64())}), tmp_path / "written" / "0.parquet")
    progress.forget_written()
    assert kept_ids(progress) == [["x"], [2]]


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("s3://bucket/folder", "bucket/folder/kept"),
        ("s3://bucket/folder/", "bucket/folder/kept"),
        ("s3://key:secret@bucket/folder?region=eu-west-1", "bucket/folder/kept"),
        ("file:///folder/", "/folder/kept"),
        ("/folder/a?b/", "/folder/a?b/kept"),
    ],
)
def test_addresses_are_named_as_their_storage_names_them(address: str, path: str) -> None:
    assert _within(_below(address, "kept")) == path


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
