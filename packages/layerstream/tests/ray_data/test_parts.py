"""The parts that need Arrow, but no running Ray: rows, columns, and errors in plain words."""

from __future__ import annotations

import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import ray

import layerstream as ls
from layerstream.cli.jobs import JobRow
from layerstream.cli.parquet_files import lines_beside, read_parquet_rows, write_parquet_results
from layerstream.ray.clusters import ClusterSettings, connected
from layerstream.ray.loading import WorkerModel
from layerstream.ray.requests import told_plainly
from layerstream.ray.rows import PromptColumn, RowAnswer, with_columns
from layerstream.ray.workers import DISK, workers_of

COLUMN = PromptColumn(name="text", max_new_tokens=4)


def test_a_prompt_may_be_text_tokens_or_messages() -> None:
    assert COLUMN.request({"text": "x"}).prompt == "x"
    assert COLUMN.request({"text": [1, 2]}).prompt == [1, 2]
    turn = {"role": "user", "content": "x"}
    assert COLUMN.request({"text": [turn]}).messages == (turn,)
    in_chat = PromptColumn(name="text", max_new_tokens=4, chat=True)
    assert in_chat.request({"text": "x"}).messages == (turn,)


def test_a_temperature_makes_rows_sample() -> None:
    request = PromptColumn(name="text", max_new_tokens=4, temperature=0.5, seed=7).request({"text": "x"})
    assert (request.do_sample, request.temperature, request.seed) == (True, 0.5, 7)


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ls.PlanError, match="there is no column text: the rows have id, prompt"):
        COLUMN.request({"id": 1, "prompt": "x"})


def test_blocks_of_errors_alone_have_the_same_types() -> None:
    rows = pa.table({"text": ["x"]})
    answered = COLUMN.table(rows, [RowAnswer(text="y", tokens=(1, 2), finish_reason="stop")])
    failed = COLUMN.table(rows, [RowAnswer(error=ValueError("no\n good"))])
    assert answered.schema == failed.schema
    assert failed["error"].to_pylist() == ["ValueError: no good"]


def test_a_column_that_is_there_already_is_not_overwritten() -> None:
    with pytest.raises(ls.PlanError, match="have a column answer already"):
        with_columns(pa.table({"answer": ["mine"]}), {"answer": pa.array(["ours"])})


def test_rows_at_once_are_halved_until_they_fit(tiny_llama_dir: Path) -> None:
    def rows_at_once(budget: str | int) -> int:
        workload = ls.Workload(batch_size=64, prompt_tokens=200, new_tokens=200)
        options = ls.LoadOptions(budget=budget, workload=workload)
        return WorkerModel.of(tiny_llama_dir, options).rows_at_once()

    assert rows_at_once("1GiB") == 64
    assert 1 <= rows_at_once("43MiB") < 64
    with pytest.raises(ls.BudgetTooSmallError):
        rows_at_once(1000)


def test_several_workers_need_drives_or_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0})
    alone = workers_of(1, num_cpus=1, num_gpus=0, disk_share=None)
    assert alone.resources == {}
    with pytest.raises(ls.PlanError, match=f'--resources=.{{"{DISK}": 1}}'):
        workers_of((1, 2), num_cpus=1, num_gpus=0, disk_share=None)
    assert workers_of((1, 2), num_cpus=1, num_gpus=0, disk_share=0).resources == {}
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, DISK: 2.0})
    assert workers_of((1, 2), num_cpus=1, num_gpus=0, disk_share=None).resources == {DISK: 1.0}
    with pytest.raises(ls.PlanError, match="must be a number of workers"):
        workers_of((3, 2), num_cpus=1, num_gpus=0, disk_share=0)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_address_where_nobody_answers_is_named_at_once() -> None:
    with socket.socket() as taken:  # bound, so nobody else can listen there meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ls.PlanError, match=f"there is no Ray at '{address}'"),
            connected(ClusterSettings(address=address)),
        ):
            pass


def test_a_workers_error_is_told_without_the_frames_around_it() -> None:
    text = "ray::submit()\n  File x, line 1\nlayerstream.errors.ReadFailedError: cannot read a.bin\n\nmore"
    with (
        pytest.raises(ls.StreamError, match=r"^a worker ended: ReadFailedError: cannot read a\.bin$"),
        told_plainly(),
    ):
        raise ray.exceptions.RayError(text)


def test_rows_of_parquet_are_rows_of_a_job(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", None], "prompt": ["x", "y"], "seed": [None, 3]})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    first, second = read_parquet_rows(tmp_path / "rows.parquet")
    assert (first.id, dict(first.fields)) == ("a", {"prompt": "x"})
    assert (second.id, dict(second.fields)) == (2, {"prompt": "y", "seed": 3})
    assert isinstance(first, JobRow)
    assert first.digest != second.digest


def test_results_become_parquet_in_the_order_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    lines = ['{"layerstream_job": 1}', '{"row": 2, "id": {"deep": 1}}', '{"row": 1, "id": "a", "text": "t"}']
    lines_beside(path).write_text("\n".join(lines) + "\n")
    write_parquet_results(path)
    written = pa.parquet.read_table(path).to_pylist()
    assert written == [{"row": 1, "id": '"a"', "text": "t"}, {"row": 2, "id": '{"deep": 1}', "text": None}]
