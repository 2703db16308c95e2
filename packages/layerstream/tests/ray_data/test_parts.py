"""The parts that need Arrow, but no running Ray: rows, columns, and errors in plain words."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import ray

import layerstream as ls
import layerstream.ray as lsr
from layerstream.cli.jobs import JobRow
from layerstream.cli.parquet_files import lines_beside, read_parquet_rows, write_parquet_results
from layerstream.ray.clusters import ClusterSettings, connected
from layerstream.ray.generation_worker import GenerationWork, GenerationWorker
from layerstream.ray.loading import WorkerModel
from layerstream.ray.requests import told_plainly
from layerstream.ray.rows import PromptColumn, RowAnswer, ScoreColumns
from layerstream.ray.scoring_worker import ScoringWork, ScoringWorker
from layerstream.ray.workers import DISK, Workers, refuse_hidden_devices, rounded_down, workers_of
from layerstream.uses.scoring.results import ScoringResult

COLUMN = PromptColumn(name="text", max_new_tokens=4)


def test_a_prompt_may_be_text_tokens_or_messages() -> None:
    assert COLUMN.request({"text": "x"}).prompt == "x"
    assert COLUMN.request({"text": [1, 2]}).prompt == [1, 2]
    turn = {"role": "user", "content": "x"}
    assert COLUMN.request({"text": [turn]}).messages == (turn,)
    in_chat = PromptColumn(name="text", max_new_tokens=4, chat=True)
    assert in_chat.request({"text": "x"}).messages == (turn,)


def test_a_temperature_or_top_p_makes_rows_sample() -> None:
    request = PromptColumn(name="text", max_new_tokens=4, temperature=0.5, seed=7).request({"text": "x"})
    assert (request.do_sample, request.temperature, request.seed, request.options) == (True, 0.5, 7, {})
    request = PromptColumn(name="text", max_new_tokens=4, top_p=0.9).request({"text": "x"})
    assert (request.do_sample, request.temperature, request.options) == (True, None, {"top_p": 0.9})
    with pytest.raises(ls.PlanError, match="top_p must be above 0 and at most 1; got 5"):
        PromptColumn(name="text", max_new_tokens=4, top_p=5)


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ls.PlanError, match="there is no column text: the rows have id, prompt"):
        COLUMN.check(["id", "prompt"])
    with pytest.raises(ls.PlanError, match="there is no column choices: the rows have text"):
        ScoreColumns(prefix="text", suffixes="choices").check(["text"])


def test_blocks_of_errors_alone_have_the_same_types() -> None:
    rows = pa.table({"text": ["x"]})
    answered = COLUMN.table(rows, [RowAnswer(text="y", tokens=(1, 2), finish_reason="stop")])
    failed = COLUMN.table(rows, [RowAnswer(error=ValueError("no\n good"))])
    assert answered.schema == failed.schema
    assert failed["error"].to_pylist() == ["ValueError: no good"]


def test_a_column_that_is_there_already_is_not_overwritten() -> None:
    with pytest.raises(ls.PlanError, match="have a column answer already"):
        COLUMN.check(["text", "answer"])
    with pytest.raises(ls.PlanError, match="have a column best already"):
        ScoreColumns(prefix="text", suffixes="choices").check(["text", "choices", "best"])


def test_the_columns_of_results_are_those_that_were_checked() -> None:
    answered = COLUMN.table(pa.table({"text": ["x"]}), [RowAnswer(error=ValueError("no"))])
    for name in answered.column_names[1:]:
        with pytest.raises(ls.PlanError, match=f"have a column {name} already"):
            COLUMN.check(["text", name])
    columns = ScoreColumns(prefix="p", suffixes="s")
    scored = columns.table(pa.table({"p": ["x"]}), [ScoringResult(index=0, error=ls.PlanError("no"))])
    for name in scored.column_names[1:]:
        with pytest.raises(ls.PlanError, match=f"have a column {name} already"):
            columns.check(["p", "s", name])


def test_a_block_with_a_wrong_column_is_refused_before_its_rows_run(tiny_llama_dir: Path) -> None:
    options = ls.LoadOptions(budget="min", workload=ls.Workload(prompt_tokens=8, new_tokens=4))
    model = WorkerModel.of(tiny_llama_dir, options)
    worker = GenerationWorker(GenerationWork(model=model, rows=COLUMN, most_waiting=2))
    try:
        with pytest.raises(ls.PlanError, match="there is no column text: the rows have prompt"):
            asyncio.run(worker(pa.table({"prompt": ["x"]})))
        with pytest.raises(ls.PlanError, match="have a column error already"):
            asyncio.run(worker(pa.table({"text": ["x"], "error": [None]})))
    finally:
        worker.close()


TWO_CPUS = ls.LoadOptions(
    budget="min", devices=("cpu", "cpu"), workload=ls.Workload(batch_size=2, prompt_tokens=16, new_tokens=6)
)


def test_the_devices_of_a_worker_share_its_rows_and_answer_as_one_does(tiny_llama_dir: Path) -> None:
    texts = ["ab", "abc", "x", "once upon"] * 2
    rows = PromptColumn(name="text", max_new_tokens=6)
    model = WorkerModel.of(tiny_llama_dir, TWO_CPUS)
    worker = GenerationWorker(GenerationWork(model=model, rows=rows, most_waiting=len(texts)))
    try:
        answered = asyncio.run(worker(pa.table({"text": texts})))
        assert all(replica.group.sweeps >= 6 for replica in worker._streamed.replicas)
    finally:
        worker.close()
    with ls.load(tiny_llama_dir, budget="min", workload=TWO_CPUS.workload) as streamed:
        requests = [ls.GenerationRequest(prompt=text, max_new_tokens=6) for text in texts]
        expected = ls.generate_many(streamed, requests, packed=False)
    assert answered["tokens"].to_pylist() == [list(result.tokens) for result in expected]
    assert set(answered["error"].to_pylist()) == {None}


def test_the_devices_of_a_worker_share_the_rows_that_it_scores(tiny_llama_dir: Path) -> None:
    requests = [("ab", ["c", "de"]), ("x", ["yes", "no"]), ("once", ["upon"]), ("y", ["z"])]
    columns = ScoreColumns(prefix="p", suffixes="s")
    worker = ScoringWorker(ScoringWork(model=WorkerModel.of(tiny_llama_dir, TWO_CPUS), columns=columns))
    try:
        prefixes, suffixes = zip(*requests, strict=True)
        scored = asyncio.run(worker(pa.table({"p": list(prefixes), "s": list(suffixes)})))
    finally:
        worker.close()
    with ls.load(tiny_llama_dir, budget="min", workload=TWO_CPUS.workload) as streamed:
        expected = ls.score(streamed, requests)
    assert scored["best"].to_pylist() == [result.best for result in expected]
    assert [[score["token_logprobs"] for score in scores] for scores in scored["scores"].to_pylist()] == [
        [score.token_logprobs.tolist() for score in result.scores] for result in expected
    ]


def test_a_block_has_rows_for_every_device_of_a_worker(tiny_llama_dir: Path) -> None:
    workload = ls.Workload(batch_size=8, prompt_tokens=20, new_tokens=4)
    one, two = (
        WorkerModel.of(tiny_llama_dir, ls.LoadOptions(budget="1GiB", workload=workload, devices=devices))
        for devices in (("cpu",), ("cpu", "cpu"))
    )
    assert (one.rows_at_once(), two.rows_at_once()) == (8, 16)


def test_accelerators_that_ray_would_hide_are_refused() -> None:
    def ask(num_gpus: float, *devices: str) -> None:
        model = WorkerModel.of("any", ls.LoadOptions(devices=devices or None))
        refuse_hidden_devices(model, Workers(num_gpus=num_gpus))

    for num_gpus in (0, 1):
        with pytest.raises(ls.PlanError, match=r"names cuda:0, cuda:1, but .*: give num_gpus=2 \("):
            ask(num_gpus, "cuda:0", "cuda:1")
    named_as_on_the_node = r"Ray shows it cuda:0, cuda:1 alone, .*num_gpus=2 .*, and name cuda:0, cuda:1$"
    with pytest.raises(ls.PlanError, match=named_as_on_the_node):
        ask(2, "cuda:2", "cuda:3")
    with pytest.raises(ls.PlanError, match="Ray shows it none alone"):
        ask(0, "cuda")
    ask(2, "cuda:0", "cuda:1")
    ask(1, "cuda")
    ask(0.5, "cuda:0", "cuda:0")
    ask(0, "cpu", "cpu")
    ask(0)


def test_rows_at_once_are_halved_until_they_fit(tiny_llama_dir: Path) -> None:
    def rows_at_once(budget: str | int) -> int:
        workload = ls.Workload(batch_size=64, prompt_tokens=200, new_tokens=200)
        options = ls.LoadOptions(budget=budget, workload=workload)
        return WorkerModel.of(tiny_llama_dir, options).rows_at_once()

    assert rows_at_once("1GiB") == 64
    with pytest.raises(ls.BudgetTooSmallError) as error:
        rows_at_once(1000)
    assert 1 <= rows_at_once(error.value.needed_bytes) < 64


def pretend(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], starts_nodes: bool = False) -> None:
    """Make a Ray of `nodes` of which every one is alive, without one that runs."""
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(node)
    monkeypatch.setattr(ray, "cluster_resources", lambda: dict(total))
    monkeypatch.setattr(ray, "available_resources", lambda: dict(total))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr("layerstream.ray.nodes._starts_nodes", lambda: starts_nodes)


def test_a_worker_that_no_node_has_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(num_cpus: float = 1, num_gpus: float = 0, disk_share: float | None = None) -> None:
        workers_of(1, num_cpus=num_cpus, num_gpus=num_gpus, disk_share=disk_share)

    pretend(monkeypatch, {"CPU": 8.0}, {"CPU": 16.0})
    ask(num_cpus=16)
    with pytest.raises(
        ls.PlanError,
        match="no node has 16 CPUs and 1 GPU for a worker; the largest has 16 CPUs and 0 GPUs",
    ):
        ask(num_cpus=16, num_gpus=1)
    pretend(monkeypatch, {"CPU": 2.0, "GPU": 1.0, DISK: 1.0}, {"CPU": 16.0})
    with pytest.raises(ls.PlanError, match=f"no node has 4 CPUs, 1 GPU and {DISK} 1 for a worker"):
        ask(num_cpus=4, num_gpus=1)
    with pytest.raises(ls.PlanError, match=f"no node has 1 CPU and {DISK} 2 for a worker"):
        ask(disk_share=2)
    pretend(monkeypatch, {"CPU": 2.0}, starts_nodes=True)
    ask(num_cpus=4, num_gpus=1)


def test_a_job_that_will_wait_for_a_drive_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 8.0, DISK: 2.0})
    free = {DISK: 1.0}
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr("layerstream.ray.nodes._FREE_WITHIN_S", 0.0)
    workers_of(1, num_cpus=1, num_gpus=0, disk_share=None)
    free.clear()
    with pytest.warns(UserWarning, match="no layerstream_disk is free: the job will wait"):
        workers_of(1, num_cpus=1, num_gpus=0, disk_share=None)
    # where Ray starts another node, the job does not wait for those that work
    monkeypatch.setattr("layerstream.ray.nodes._starts_nodes", lambda: True)
    workers_of(1, num_cpus=1, num_gpus=0, disk_share=None)


def test_a_share_of_drives_that_no_node_has_yet_waits_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 0.0})
    workers = workers_of((1, 8), num_cpus=14, num_gpus=0, disk_share=1)
    assert workers.resources == {DISK: 1}


@pytest.mark.parametrize("num_workers", [1, 3, 6, 7, 11])
def test_shares_of_a_drive_fit_on_it_as_ray_counts(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 16.0, DISK: 1.0})
    share = workers_of(num_workers, num_cpus=1, num_gpus=0, disk_share=1 / num_workers).disk_share
    steps = share * 10_000
    assert steps == pytest.approx(round(steps))
    assert 10_000 - num_workers < num_workers * round(steps) <= 10_000


def test_a_share_with_four_decimals_stays_as_it_is() -> None:
    shares = [step / 10_000 for step in range(10_001)]
    assert [rounded_down(share) for share in shares] == shares


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray makes its own settings
def test_the_command_is_told_what_to_do_with_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    is_connected = []
    monkeypatch.setattr(ray, "init", lambda **_: is_connected.append(True))
    monkeypatch.setattr(ray, "shutdown", is_connected.clear)
    pretend(monkeypatch, {"CPU": 6.0}, {"CPU": 6.0})
    with (
        pytest.raises(ls.PlanError, match=f"--workers 4: .*{DISK}.*, or leave out --workers$") as error,
        connected(ClusterSettings(address="auto", workers=4)),
    ):
        pass
    assert "ray.init" not in str(error.value)
    assert "disk_share" not in str(error.value)
    assert is_connected == []
    with connected(ClusterSettings(address="auto")) as workers:
        assert (workers.most, is_connected) == (1, [True])


class Unread:
    """Rows whose columns are not known before they are read, and which nothing reads."""

    def columns(self, *, fetch_if_missing: bool) -> None:
        assert not fetch_if_missing


@pytest.mark.parametrize(
    ("verb", "keyword", "advice"),
    [
        (lsr.generate, "batch_size", "batch_size: give rows_per_block"),
        (lsr.generate, "workload", "workload: give prompt_tokens, max_new_tokens and rows_per_block"),
        (lsr.generate, "prefix_cache", "prefix_cache: rows continue no conversation"),
        (lsr.generate, "bugdet", "did you mean budget?"),
        (lsr.generate, "device_map", "give budget, device or devices"),
        (lsr.score, "draft", "draft: scoring needs no draft; leave it out"),
        (lsr.score, "max_new_tokens", "scoring generates no tokens; leave it out"),
        (lsr.score, "workload", "workload: give prompt_tokens and rows_per_block"),
    ],
)
def test_keywords_that_are_not_for_rows_say_what_is(verb: Any, keyword: str, advice: str) -> None:
    with pytest.raises(ls.UnsupportedOptionError, match=re.escape(advice)) as error:
        verb(Unread(), model="any", **{keyword: 1})
    assert error.value.names == (keyword,)
    assert "Workload(" not in str(error.value)


class Rows:
    """Rows whose columns are known, and which nothing reads."""

    def __init__(self, *columns: str) -> None:
        self._columns = list(columns)

    def columns(self, *, fetch_if_missing: bool) -> list[str]:
        return self._columns


def test_a_column_is_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ls.PlanError, match="there is no column prmopt: the rows have prompt, tokens"):
        lsr.generate(Rows("prompt", "tokens"), model="any", prompt="prmopt")
    with pytest.raises(ls.PlanError, match="the rows have a column tokens already"):
        lsr.generate(Rows("prompt", "tokens"), model="any")
    progress = {"id_column": "nmuber", "progress_dir": tmp_path}
    with pytest.raises(ls.PlanError, match="there is no column nmuber: the rows have number, prompt"):
        lsr.generate(Rows("number", "prompt"), model="any", **progress)
    with pytest.raises(ls.PlanError, match="there is no column nmuber: the rows have p, s"):
        lsr.score(Rows("p", "s"), model="any", prefix="p", suffixes="s", **progress)


def test_several_workers_need_drives_or_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 6.0})
    alone = workers_of(1, num_cpus=1, num_gpus=0, disk_share=None)
    assert alone.resources == {}
    with pytest.raises(ls.PlanError, match=f'--resources=.{{"{DISK}": 1}}'):
        workers_of((1, 2), num_cpus=1, num_gpus=0, disk_share=None)
    assert workers_of((1, 2), num_cpus=1, num_gpus=0, disk_share=0).resources == {}
    pretend(monkeypatch, {"CPU": 6.0, DISK: 2.0})
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
