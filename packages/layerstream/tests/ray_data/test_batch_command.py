"""`layerstream batch --ray local`: the lines of the plain command, and going on after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.job_files import results_of, write_lines

# one at a time: each starts a Ray
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(300)]

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "ab"},
    {"id": "bad", "prompt": ""},
    {"prompt": "abc", "max_new_tokens": 3},
    {"id": "chat", "messages": [{"role": "user", "content": "hi"}]},
    {"id": "sampled", "prompt": "x", "temperature": 0.8},
    {"custom_id": "o", "method": "POST", "url": "/v1/completions", "body": {"prompt": "q", "model": "m"}},
    {"id": "scored", "prefix": "a", "suffixes": ["b"]},
]


def batch(model: Path, rows: Path, results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, rows, results, *options), capture_output=True, text=True, check=False, timeout=250
    )


def command(model: Path, rows: Path, results: Path, *options: str) -> list[str]:
    settings = ["--model", str(model), "--budget", "min", "-n", "6", "--seed", "3", *options]
    return [sys.executable, "-m", "layerstream", "batch", str(rows), str(results), *settings]


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_lines_are_those_of_the_plain_command(devices: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", *ROWS)
    on_ray = batch(tiny_llama_dir, rows, tmp_path / "on-ray.jsonl", "--ray", "local", "--device", devices)
    assert on_ray.returncode == 1, on_ray.stderr
    assert "7 of 7 rows have a result, 2 of them an error" in on_ray.stderr
    # the same job: nothing is left to do, and the header is the same
    again = batch(tiny_llama_dir, rows, tmp_path / "on-ray.jsonl", "--no-packed", "--quiet")
    assert again.stderr == ""
    batch(tiny_llama_dir, rows, tmp_path / "plain.jsonl", "--no-packed", "--quiet")
    found, expected = results_of(tmp_path / "on-ray.jsonl"), results_of(tmp_path / "plain.jsonl")
    assert found.pop(7)["error"].startswith("a row needs a prompt, messages or ids, or a custom_id")
    del expected[7]
    for results in (found, expected):
        del results[6]["response"]["body"]["created"]
    assert found == expected


def test_a_killed_command_goes_on_where_it_was(tiny_llama_dir: Path, tmp_path: Path) -> None:
    prompts = [{"id": number, "prompt": "ab" * (number % 3 + 1)} for number in range(40)]
    rows, results = write_lines(tmp_path / "rows.jsonl", *prompts), tmp_path / "results.jsonl"
    options = ("--ray", "local", "--max-rows", "2")
    process = subprocess.Popen(
        command(tiny_llama_dir, rows, results, *options, "--quiet"), stderr=subprocess.DEVNULL
    )
    while not results.exists() or len(results.read_bytes().splitlines()) < 6:
        assert process.poll() is None, "the command ended by itself"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    its_own = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(its_own, timeout=30)
    # Ray's agents hold no memory to speak of, and end when they miss the others, after a minute
    agents = [each for each in alive if each.name().endswith("Agent")]
    for agent in agents:
        agent.kill()
    assert set(alive) == set(agents), "workers outlive the command"
    results_before = len(results_of(results))
    assert 0 < results_before < len(prompts)
    again = batch(tiny_llama_dir, rows, results, *options)
    assert again.returncode == 0, again.stderr
    batch(tiny_llama_dir, rows, tmp_path / "plain.jsonl", "--no-packed", "--quiet")
    assert results_of(results) == results_of(tmp_path / "plain.jsonl")


def test_parquet_in_parquet_out(tiny_llama_dir: Path, tmp_path: Path) -> None:
    prompts = {"id": ["x", "y", "z"], "prompt": ["a", "b", None], "ids": [None, None, [5, 6]]}
    pq.write_table(pa.table(prompts), tmp_path / "rows.parquet")
    done = batch(tiny_llama_dir, tmp_path / "rows.parquet", tmp_path / "results.parquet", "--ray", "local")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["id"], row["new_tokens"] > 0, row["finish_reason"]) for row in table] == [
        (name, True, "length") for name in ("x", "y", "z")
    ]


def test_rows_of_a_data_set_get_what_the_plain_command_gives_them(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sums").mkdir()
    questions = [{"id": f"q{number}", "question": "ab" * number, "answer": "x"} for number in (1, 2, 3)]
    rows = write_lines(tmp_path / "sums" / "test.jsonl", *questions)
    column = ("--prompt-column", "question")
    on_ray = batch(
        tiny_llama_dir, rows.parent, tmp_path / "on-ray.jsonl", "--split", "test", *column, "--ray", "local"
    )
    assert on_ray.returncode == 0, on_ray.stderr
    assert "sums, default, test: 3 rows; read: id, question; left out: answer" in on_ray.stderr
    plain = batch(tiny_llama_dir, rows, tmp_path / "plain.jsonl", *column, "--no-packed", "--quiet")
    assert plain.returncode == 0, plain.stderr
    found = results_of(tmp_path / "on-ray.jsonl")
    assert [row["id"] for _, row in sorted(found.items())] == ["q1", "q2", "q3"]
    assert found == results_of(tmp_path / "plain.jsonl")
