"""Rows of a Ray dataset get the answers of one machine, each once, whatever is killed meanwhile."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from kit.ray_rows import (
    BLOCK_ROWS,
    SETTINGS,
    GatedWorker,
    NotingWorker,
    answer_gated,
    answering_processes,
    gate_of,
    notes_of,
    plain_answers,
    write_rows,
)

import layerstream as ls
import layerstream.ray as lsr
from layerstream.ray import verbs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(300),
    # Ray's own processes talk through sockets of this machine
    pytest.mark.enable_socket,
]

NUM_ROWS = 6 * BLOCK_ROWS + 1


@pytest.fixture
def model(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A link to the tiny model, in a folder of this test's own, where its gate is too."""
    link = tmp_path / "model"
    link.symlink_to(tiny_llama_dir)
    return link


def by_id(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    assert len({row["id"] for row in rows}) == len(rows), "a row came twice"
    return {row["id"]: row for row in rows}


def test_answers_are_those_of_generate_many(local_ray: str, model: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "rows.parquet", NUM_ROWS)
    rows = ray.data.read_parquet(str(tmp_path / "rows.parquet"))
    answered = by_id(lsr.generate(rows, model=model, concurrency=(1, 2), **SETTINGS).take_all())
    assert {number: row["tokens"] for number, row in answered.items()} == plain_answers(model, texts)
    assert {row["error"] for row in answered.values()} == {None}
    assert {number: row["text"] for number, row in answered.items()} == texts


def test_answers_on_several_devices_of_a_worker_are_the_same(
    local_ray: str, model: Path, tmp_path: Path
) -> None:
    texts = write_rows(tmp_path / "rows.parquet", NUM_ROWS)
    rows = ray.data.read_parquet(str(tmp_path / "rows.parquet"))
    settings = {**SETTINGS, "rows_per_block": None, "devices": ("cpu", "cpu")}
    answered = by_id(lsr.generate(rows, model=model, **settings).take_all())
    assert {number: row["tokens"] for number, row in answered.items()} == plain_answers(model, texts)
    assert {row["error"] for row in answered.values()} == {None}
    with pytest.raises(ls.PlanError, match="give num_gpus=2"):
        lsr.generate(rows, model=model, **{**settings, "devices": ("cuda:0", "cuda:1")})


def test_a_bad_row_is_a_row_with_an_error(local_ray: str, model: Path) -> None:
    texts = {0: "good", 1: "", 2: "far too long " * 20, 3: "good too", 4: None}
    rows = ray.data.from_items([{"id": number, "text": text} for number, text in texts.items()])
    answered = by_id(lsr.generate(rows, model=model, **SETTINGS).take_all())
    assert [number for number, row in answered.items() if row["error"] is None] == [0, 3]
    assert "empty" in answered[1]["error"]
    assert "room for" in answered[2]["error"]
    assert answered[4]["error"] == "text must hold text, token ids or messages; got NoneType"
    assert {answered[number]["finish_reason"] for number in (1, 2, 4)} == {"error"}


def test_a_budget_too_small_is_told_at_once_with_numbers(local_ray: str, model: Path) -> None:
    rows = ray.data.from_items([{"id": 0, "text": "x"}])
    with pytest.raises(ls.BudgetTooSmallError, match="give at least") as error:
        lsr.generate(rows, model=model, **{**SETTINGS, "budget": 1000, "rows_per_block": None})
    assert error.value.budget_bytes == 1000 < error.value.needed_bytes


def test_a_worker_that_cannot_hold_the_model_ends_the_job(local_ray: str, model: Path) -> None:
    rows = ray.data.from_items([{"id": 0, "text": "x"}])
    answered = lsr.generate(rows, model=model, **{**SETTINGS, "budget": 1000})
    with pytest.raises(ray.exceptions.RayTaskError, match="BudgetTooSmallError: a device budget of 1000 B"):
        answered.take_all()


def test_a_worker_that_is_too_large_for_the_node_is_refused_and_not_waited_for(
    local_ray: str, model: Path
) -> None:
    rows = ray.data.from_items([{"id": 0, "text": "x"}])
    with pytest.raises(ls.PlanError, match=r"no node has 64 CPUs .* for a worker; the largest has 6 CPUs"):
        lsr.generate(rows, model=model, num_cpus=64, **{**SETTINGS, "rows_per_block": None})


def test_columns_that_are_known_late_are_checked_by_the_worker(local_ray: str, model: Path) -> None:
    rows = ray.data.from_items([{"id": 0, "text": "x", "error": "mine"}])
    with pytest.raises(ls.PlanError, match="the rows have a column error already"):
        lsr.generate(rows, model=model, **SETTINGS)
    answered = lsr.generate(rows.map(lambda row: row), model=model, **SETTINGS)
    with pytest.raises(ray.exceptions.RayTaskError, match="PlanError: the rows have a column error already"):
        answered.take_all()
    answered = lsr.generate(rows.map(lambda row: row), model=model, **{**SETTINGS, "prompt": "txet"})
    with pytest.raises(ray.exceptions.RayTaskError, match="PlanError: there is no column txet"):
        answered.take_all()


def test_a_killed_worker_loses_and_repeats_no_row(
    local_ray: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_rows(tmp_path / "rows.parquet", NUM_ROWS)
    monkeypatch.setattr(verbs, "GenerationWorker", GatedWorker)
    rows = ray.data.read_parquet(str(tmp_path / "rows.parquet"))
    blocks = lsr.generate(rows, model=model, **SETTINGS).iter_batches(batch_size=None, batch_format="pyarrow")
    answered = next(iter_blocks := iter(blocks)).to_pylist()
    [process] = answering_processes()
    process.kill()
    process.wait()
    gate_of(model).touch()
    answered += [row for block in iter_blocks for row in block.to_pylist()]
    assert {n: row["tokens"] for n, row in by_id(answered).items()} == plain_answers(model, texts)


def test_a_job_whose_driver_was_killed_goes_on_where_it_was(
    local_ray: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_rows(tmp_path / "rows.parquet", NUM_ROWS)
    paths = [model, tmp_path / "rows.parquet", tmp_path / "answers", tmp_path / "progress"]
    driver = subprocess.Popen([sys.executable, "-m", "kit.ray_rows", local_ray, *map(str, paths)])
    while len(list(tmp_path.glob("progress/written/*[!g].parquet"))) < 2:
        assert driver.poll() is None, "the driver ended by itself"
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    written = pq.read_table(tmp_path / "answers").num_rows
    assert written == 2 * BLOCK_ROWS
    gate_of(model).touch()
    monkeypatch.setattr(verbs, "GenerationWorker", GatedWorker)
    answer_gated(*paths)
    answered = by_id(pq.read_table(tmp_path / "answers").to_pylist())
    assert {number: row["tokens"] for number, row in answered.items()} == plain_answers(model, texts)


def test_rows_that_were_answered_but_not_written_are_not_answered_again(
    local_ray: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_rows(tmp_path / "rows.parquet", NUM_ROWS)
    rows = ray.data.read_parquet(str(tmp_path / "rows.parquet"))
    settings = {**SETTINGS, "id_column": "id", "progress_dir": tmp_path / "progress"}
    lsr.generate(rows.limit(5 * BLOCK_ROWS), model=model, **settings).write_parquet(str(tmp_path / "lost"))
    shutil.rmtree(tmp_path / "progress" / "written")
    monkeypatch.setattr(verbs, "GenerationWorker", NotingWorker)
    lsr.generate(rows, model=model, **settings).write_parquet(str(tmp_path / "answers"))
    first, second = (by_id(pq.read_table(tmp_path / name).to_pylist()) for name in ("lost", "answers"))
    assert {n: row["tokens"] for n, row in second.items()} == plain_answers(model, texts)
    assert {n: second[n] for n in first} == first
    answered = [int(number) for number in notes_of(model).read_text().split()]
    assert sorted(answered) == sorted(texts.keys() - first.keys())


def test_progress_is_no_setting_of_the_rows_themselves(local_ray: str, model: Path, tmp_path: Path) -> None:
    rows = ray.data.from_items([{"id": 0, "text": "x"}])
    answered = lsr.generate(rows, model=model, id_column="id", progress_dir=tmp_path, **SETTINGS)
    assert answered.context.checkpoint_config.id_column == "id"
    assert rows.context.checkpoint_config is None
