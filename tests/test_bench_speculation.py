"""`benchmarks/bench_speculation.py` runs, keeps what it found, and computes sweeps from ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from read_limit import read_limited
from speculation_steps.acceptance import accepted_by_lookup, accepted_by_rank, sweeps
from speculation_steps.job import KINDS, PROMPTS, Findings

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("acceptance", "sweeps", "mechanism", "simulation")


def test_there_are_ten_different_prompts_of_each_kind() -> None:
    prompts = json.loads(PROMPTS.read_text())
    assert {kind: len(set(texts)) for kind, texts in prompts.items()} == dict.fromkeys(KINDS, 10)


def test_extraction_prompts_hold_a_text_to_quote_from() -> None:
    for prompt in json.loads(PROMPTS.read_text())["extraction"]:
        assert 80 <= len(prompt.partition("\n\nText: ")[2].split()) <= 150


def test_a_sweep_accepts_tokens_up_to_the_first_wrong_one_and_gives_one_more() -> None:
    chain = accepted_by_rank([0, 0, 0, 2, 0, 0, 0, 0], 1)
    assert list(sweeps(8, 4, chain)) == [(1, 4, 2), (4, 3, 3)]


def test_a_wide_draft_accepts_later_ranks() -> None:
    wide = accepted_by_rank([0, 0, 0, 2, 0, 0, 0, 0], 3)
    assert list(sweeps(8, 8, wide)) == [(1, 6, 6)]


def test_no_sweep_drafts_more_than_the_answer_can_use() -> None:
    right = accepted_by_rank([0] * 5, 1)
    assert list(sweeps(5, 64, right)) == [(1, 3, 3)]
    assert list(sweeps(2, 64, right)) == [(1, 0, 0)]


def test_lookup_accepts_what_the_text_repeats() -> None:
    accepted = accepted_by_lookup([1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 7])
    assert accepted(3, 8) == 2
    assert accepted(1, 8) == 0


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    Findings(path).put("wall", {"seconds": 1.0}, prompt="chat-0")
    with path.open("a") as file:
        file.write('{"stage": "wall", "key": {"prom')
    found = Findings(path)
    found.put("wall", {"seconds": 2.0}, prompt="chat-1")
    assert [each["seconds"] for _, each in Findings(path).of("wall")] == [1.0, 2.0]


def test_findings_of_one_stage_are_forgotten_alone(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    found = Findings(path)
    for stage in ("wall", "sweeps"):
        found.put(stage, {"seconds": 1.0}, prompt="chat-0")
    found.forget(["wall"])
    again = Findings(path)
    assert again.get("wall", prompt="chat-0") is None
    assert again.get("sweeps", prompt="chat-0") == {"seconds": 1.0}


def test_a_limit_on_reads_leaves_no_group_behind(tmp_path: Path) -> None:
    with read_limited(tmp_path) as limit:
        limit.set(100_000_000)
        limit.set(0)
    assert not limit.group or not Path(limit.group).exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_stages_run_and_a_second_run_measures_nothing_anew(tmp_path: Path) -> None:
    paths = [str(ROOT / "packages/layerstream/src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(ROOT / "benchmarks/bench_speculation.py"), "--quick", "--prompts", "1"]
    where = ["--out", str(tmp_path), "--work", str(tmp_path), "--hardware", "tiny", "--date", "today"]
    command = [*script, "--new-tokens", "6", "--stages", ",".join(STAGES), *where]
    subprocess.run(command, check=True, env=environment)
    (lines,) = tmp_path.glob("*.jsonl")
    before = lines.read_text()
    for stage in STAGES:
        table = json.loads((tmp_path / f"speculation-{stage}_tiny_today.json").read_text())
        assert table["rows"], stage
        assert all(len(row) == len(table["columns"]) for row in table["rows"]), stage
    (row,) = [
        row
        for row in json.loads((tmp_path / "speculation-sweeps_tiny_today.json").read_text())["figures"][
            "rows"
        ]
        if (row["way"], row["dtype"]) == ("int8 chain of 16", "float16")
    ]
    assert row["same"] == row["prompts"] == 1
    again = [*script, "--new-tokens", "6", "--stages", "acceptance", *where]
    subprocess.run(again, check=True, env=environment)
    assert lines.read_text() == before
