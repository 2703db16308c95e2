"""`benchmarks/bench_peers.py`: figures, targets, tables and the talk with a peer's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from memory_limit import Limit
from peers import environments, report
from peers.checkpoints import SMALL_MOE, write_checkpoint
from peers.contention import estimate_s, measure_contention
from peers.disk_speed import DiskSpeed
from peers.figures import disk_limit, limit_lines, rates_by_round, rows, step_s, targets, total_s
from peers.measure import Clock, agreement
from peers.process import PeerError, PeerProcess
from peers.protocol import generate, write_second_copy
from peers.stages import ENVIRONMENTS, LONGEST, SHORTEST, STAGES, expected_s, many_prompts, sample_of

BENCHMARKS = Path(environments.__file__).resolve().parent.parent
SHOUTING_PEER = """
from peers.protocol import serve

class Shouting:
    def load(self, spec):
        print("libraries print what they like")
        return {}
    def start(self, prompts):
        raise RuntimeError("no room for " + str(len(prompts)) + " prompts")

def make():
    print("so do modules when they are imported")
    return Shouting()

serve(make)
"""
SPEC: dict[str, Any] = {
    "model": "",
    "scratch": "",
    "keep": "nothing",
    "variant": "",
    "limit_bytes": 0,
    "num_blocks": 1,
    "block_bytes": 1,
    "batch_size": 1,
    "prompt_tokens": 1,
    "new_tokens": 1,
}


class CountingPeer:
    """Answers with numbers that count up, and counts how often its caches were dropped."""

    def __init__(self) -> None:
        self.drops = 0

    def load(self, spec: object) -> dict[str, Any]:
        return {}

    def start(self, prompts: list[list[int]]) -> list[int]:
        return [prompt[-1] + 1 for prompt in prompts]

    def step(self, tokens: list[int]) -> list[int]:
        return [token + 1 for token in tokens]

    def drop_caches(self) -> None:
        self.drops += 1


def entry(*rounds: list[float], way: str = "together", **more: Any) -> dict[str, Any]:
    return {
        "case": {"way": way},
        "rounds": [
            {"round": number, "seconds": seconds, "read_bytes": [10**9] * len(seconds)}
            for number, seconds in enumerate(rounds)
        ],
        **more,
    }


def stage(cases: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "title": "One prompt, 1.5 GB",
        "num_prompts": 1,
        "new_tokens": 3,
        "weight_bytes": 1_500_000_000,
        "block_bytes": 10**9,
        "routed_bytes": 10**9,
        "limit_bytes": None,
        "load_average_before": 0.0,
        "bytes_per_s": [2e9, 1e9],
        "cases": cases,
        **more,
    }


STREAMED = entry([9.0, 0.5, 0.5], [9.0, 1.0, 1.0], load={"sweep_bytes": 10**9})


# -- figures and targets ---------------------------------------------------------------------------------


def test_a_token_takes_the_median_pass_after_the_first() -> None:
    assert step_s({"seconds": [9.0, 1.0, 5.0, 2.0]}) == 2.0


def test_passes_that_were_not_run_take_as_long_as_a_step() -> None:
    assert total_s({"seconds": [5.0, 2.0]}, new_tokens=4) == 11.0
    assert total_s({"seconds": [7.0]}, new_tokens=4) == 7.0


def test_the_limit_of_a_round_is_that_rounds_disk() -> None:
    assert disk_limit(stage({}), 4 * 10**9) == {0: 2.0, 1: 4.0}


def test_the_plot_has_a_line_at_the_disks_limit_and_for_a_mixture_one_for_a_tokens_experts() -> None:
    assert list(limit_lines(stage({})).values()) == [0.75]
    assert list(limit_lines(stage({}, routed_bytes=2 * 10**8)).values()) == [0.75, pytest.approx(0.15)]


CONTENTION = {
    "compute_s": 0.2,
    "bytes_per_s": 4e9,
    "compute_while_reading_s": 0.4,
    "bytes_per_s_while_computing": 2e9,
}


@pytest.mark.parametrize(
    ("num_bytes", "expected_s"),
    [(16 * 10**8, 0.6), (8 * 10**8, 0.4), (4 * 10**8, 0.3), (0, 0.2)],
    ids=["reads longer", "both end at once", "computes longer", "reads nothing"],
)
def test_a_pass_reads_and_computes_at_once_as_far_as_it_goes(num_bytes: int, expected_s: float) -> None:
    assert estimate_s(CONTENTION, num_bytes, 4e9) == pytest.approx(expected_s)


def test_the_limit_with_computation_stands_beside_the_target_and_on_the_plot() -> None:
    found = stage({"layerstream": STREAMED}, contention=CONTENTION)
    assert "all blocks read while it computes (estimate)" in limit_lines(found)
    found_targets = targets({"dense": found})
    assert any(line.startswith("for comparison") and "while computing" in line for line in found_targets)


def test_contention_is_measured_while_both_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10**6))

    def compute() -> list[float]:
        time.sleep(1.0)
        return [0.1, 0.3, 0.2]

    found = measure_contention(DiskSpeed([tmp_path / "file"]), compute)
    assert set(found) == set(CONTENTION)
    assert found["compute_s"] == 0.2 and min(found.values()) > 0


def test_ratios_are_taken_within_a_round() -> None:
    # both rounds are exactly at the disk's speed, though the disk was half as fast in the second
    found = targets({"dense": stage({"layerstream": STREAMED})})
    assert found[0].startswith("reached") and ": 1.00 (target: at most 1.1)" in found[0]


def test_a_peer_is_compared_in_the_rounds_that_it_took_part_in() -> None:
    cases = {"layerstream": STREAMED, "AirLLM": entry([20.0, 3.5, 3.5])}
    line = next(line for line in targets({"dense": stage(cases)}) if "AirLLM" in line)
    peer = "AirLLM with no blocks in memory"
    assert line == f"MISSED: 1.5 GB, layerstream: times as fast as {peer}: 7.00 (target: at least 8)"


def test_with_half_resident_the_targets_are_twice_as_high() -> None:
    half = entry([9.0, 0.25, 0.25], load={"sweep_bytes": 5 * 10**8})
    cases = {"layerstream": STREAMED, "layerstream, half resident": half, "oLLM": entry([1.0, 0.75, 0.75])}
    found = [line for line in targets({"dense": stage(cases)}) if "oLLM" in line]
    assert [line.split(":")[0] for line in found] == ["reached", "reached"]
    assert found[1].endswith("3.00 (target: at least 3)")


def test_a_peer_without_a_figure_leaves_its_target_unmeasured() -> None:
    cases = {"layerstream": STREAMED, "oLLM": entry(error="ValueError: no")}
    assert "not measured: 1.5 GB, layerstream: times as fast as oLLM with no blocks in memory" in targets(
        {"dense": stage(cases)}
    )


def test_many_prompts_are_compared_with_the_best_peer() -> None:
    cases = {
        "layerstream": entry([4.0]),
        "accelerate": entry([10.0, 5.0, 5.0]),
        "oLLM, one after another": entry([1.0, 1.0, 1.0], way="alone"),
    }
    batch = stage(cases, num_prompts=32)
    assert rates_by_round(batch, "layerstream") == {0: 24.0}
    assert rates_by_round(batch, "oLLM, one after another") == {0: 1.0}
    missed, compared = targets({"batch": batch})
    assert missed.startswith("MISSED") and ": 5.00 (target: at least 20)" in missed
    assert compared.endswith("one after another: 24.00")


def test_a_peer_that_failed_has_its_error_in_its_row() -> None:
    found = stage({"layerstream": STREAMED, "oLLM": entry(error="ValueError: this | that")})
    assert rows(found)[1][-1] == "cannot: ValueError: this / that"


def test_agreement_counts_tokens_up_to_the_first_difference() -> None:
    found = agreement([[1, 2, 3], [4, 5, 6], [7, 8]], [[1, 2, 3], [4, 0, 6], [7, 8, 9]])
    assert found == {"answers": 3, "equal_answers": 2, "tokens": 8, "equal_tokens": 6}


def test_the_report_has_a_table_for_each_stage_and_every_plan(tmp_path: Path) -> None:
    streamed = {**STREAMED, "load": {"sweep_bytes": 10**9, "plan": "two slots", "load_s": 1.5}}
    stages = {"dense": stage({"layerstream": streamed}), "batch": stage({}, title="32 prompts")}
    stem = tmp_path / "out" / "peers_machine_2026-01-01"
    report.write_files(stages, {"processor": "some"}, stem, {"dense": "<svg/>"})
    text = stem.with_name(stem.name + ".md").read_text()
    assert "## One prompt, 1.5 GB" in text and "## 32 prompts" in text and "two slots" in text
    assert "peers_machine_2026-01-01_dense.svg" in text
    assert report.read_stages(stem) == stages


def test_a_run_of_some_stages_begins_with_those_of_an_earlier_one(tmp_path: Path) -> None:
    assert report.read_stages(tmp_path / "none") == {}


# -- what is run -----------------------------------------------------------------------------------------


def test_every_case_has_an_environment_and_every_environment_a_recipe() -> None:
    assert {case.peer for each in STAGES for case in each.cases} <= set(ENVIRONMENTS)
    assert set(ENVIRONMENTS.values()) - {""} == set(environments.RECIPES)


def test_cases_of_a_stage_have_different_names() -> None:
    for each in STAGES:
        assert len({case.name for case in each.cases}) == len(each.cases)


def test_the_prompts_are_32_of_unequal_lengths_and_always_the_same() -> None:
    prompts = many_prompts()
    assert (len(prompts), min(map(len, prompts)), max(map(len, prompts))) == (32, SHORTEST, LONGEST)
    assert prompts == many_prompts()
    assert sorted(map(len, prompts)).index(len(sample_of(prompts)[0])) == 16


def test_half_resident_is_expected_to_take_less_and_fewer_rounds_too() -> None:
    dense = STAGES[0]
    whole, half = (replace(dense.cases[0], keep=keep) for keep in ("nothing", "half"))
    assert expected_s(dense, half, 3, 10**9) < expected_s(dense, whole, 3, 10**9)
    assert expected_s(dense, replace(whole, rounds=1), 3, 10**9) < expected_s(dense, whole, 3, 10**9)


def test_the_estimate_follows_the_pace_so_far() -> None:
    clock = Clock(expected_s=600.0, started_s=Clock(expected_s=0.0).started_s - 200.0)
    clock.advance(100.0)
    assert clock.left() == "about 17 min left"


def test_an_environment_that_was_never_made_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environments.FOLDER_VARIABLE, str(tmp_path))
    assert "nox -s bench-peers" in str(environments.find("ollm"))


def test_a_mixture_needs_fewer_bytes_for_a_token_than_it_has(tmp_path: Path) -> None:
    shape = replace(SMALL_MOE, num_blocks=1, vocab_size=64)
    found = write_checkpoint(tmp_path / "moe", shape)
    stored = sum(path.stat().st_size for path in found.block_files)
    assert 0 <= stored - found.block_bytes < 10_000
    expert_bytes = 3 * shape.hidden_size * shape.intermediate_size * 2
    idle = shape.num_experts - shape.experts_per_token
    assert found.block_bytes - found.routed_bytes == idle * expert_bytes


def test_the_disks_speed_is_that_of_whole_files(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(100_001))
    assert DiskSpeed([tmp_path / "short"]).measure() > 0


# -- a peer's process ------------------------------------------------------------------------------------


def test_a_generation_has_one_entry_for_each_pass_and_drops_caches_before_the_first_ones() -> None:
    peer = CountingPeer()
    found = generate(peer, [[1, 2], [7]], new_tokens=3, cold_passes=2)
    assert found["tokens"] == [[3, 4, 5], [8, 9, 10]]
    assert len(found["seconds"]) == len(found["read_bytes"]) == 3
    assert peer.drops == 2


def test_a_second_copy_is_written_once_and_its_cost_is_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    first = write_second_copy(folder, lambda: (folder / "weights").write_bytes(bytes(10)))
    second = write_second_copy(folder, lambda: pytest.fail("written twice"))
    assert first["second_copy_bytes"] == second["second_copy_bytes"] == 10
    assert second["second_copy_s"] == 0.0


@pytest.fixture
def shouting(tmp_path: Path) -> Any:
    """A process whose peer prints, and raises at the prompts."""
    log = tmp_path / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SHOUTING_PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=BENCHMARKS,
        )
    with process:
        yield PeerProcess(process=process, limit=Limit(kind="none", num_bytes=0), log=log)
        process.kill()


def test_what_a_library_prints_is_not_taken_for_an_answer(shouting: PeerProcess) -> None:
    assert shouting.ask("load", seconds=60, spec=SPEC)["load_s"] >= 0
    log = shouting.log.read_text()
    assert "libraries print" in log and "so do modules" in log


def test_an_error_in_a_peer_is_an_answer_and_the_process_goes_on(shouting: PeerProcess) -> None:
    with pytest.raises(PeerError, match="RuntimeError: no room for 1 prompts"):
        shouting.ask("generate", seconds=60, prompts=[[1]], new_tokens=1, cold_passes=0)
    assert shouting.ask("load", seconds=60, spec=SPEC)["load_s"] >= 0


def test_a_process_that_was_killed_under_a_limit_is_said_to_need_more(shouting: PeerProcess) -> None:
    shouting.limit = Limit(kind="none", num_bytes=2**30)
    shouting.process.kill()
    with pytest.raises(PeerError, match=r"more than the limit of 1\.00 GiB"):
        shouting.ask("load", seconds=60, spec=SPEC)


# -- the whole -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quick_run_finds_equal_tokens_and_a_peer_that_is_not_there_does_not_stop_it(tmp_path: Path) -> None:
    source = BENCHMARKS.parent / "packages" / "layerstream" / "src"
    work, out = tmp_path / "work", tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "bench_peers.py"), "--quick", "--rounds", "1"]
    chosen = ["--stages", "dense", "--only", "layerstream,accelerate,ollm"]
    folders = ["--work", str(work), "--out", str(out), "--hardware", "machine"]
    variables = {
        **os.environ,
        "PYTHONPATH": str(source),
        environments.FOLDER_VARIABLE: str(tmp_path / "none"),
    }
    subprocess.run([*command, *chosen, *folders], env=variables, check=True, capture_output=True)
    (path,) = out.glob("*.json")
    cases = json.loads(path.read_text())["stages"]["dense"]["cases"]
    assert "not installed" in cases["oLLM"]["error"]
    for name in ("layerstream", "layerstream, half resident", "accelerate"):
        assert cases[name]["equal"]["equal_tokens"] == cases[name]["equal"]["tokens"] == 5
    assert "oLLM" in path.with_suffix(".md").read_text()
    assert list(work.iterdir()) == []
