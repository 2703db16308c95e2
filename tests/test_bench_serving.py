"""`benchmarks/bench_serving.py` runs, and the server keeps its promises; no speed is judged here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from serving_steps.cases import random_cases
from serving_steps.clients import Answer, Case, Clients
from serving_steps.crowd import Crowd
from serving_steps.job import read_prompts
from serving_steps.kills import INVALID_EVERY, Killed, compare

ROOT = Path(__file__).resolve().parent.parent
START_S = 40
"""How long a server takes to start on a machine that is busy."""


def result(number: int, text: str = "yes", status: int = 200) -> dict[str, Any]:
    """Return a line of an output file."""
    choice = {"message": {"content": text}, "finish_reason": "length"}
    body = {"choices": [choice], "usage": {"completion_tokens": 3}}
    return {"custom_id": str(number), "response": {"status_code": status, "body": body}}


EXPECTED = Answer(text="yes", num_tokens=3, finish_reason="length")


def compared(results: list[dict[str, Any]], num_lines: int) -> Killed:
    killed = Killed(num_lines=num_lines)
    compare(killed, results, [EXPECTED] * num_lines)
    return killed


def test_a_complete_batch_breaks_no_promise() -> None:
    results = [result(number) for number in range(INVALID_EVERY - 1)]
    killed = compared([*results, result(INVALID_EVERY - 1, status=400)], INVALID_EVERY)
    assert set(killed.promises().values()) == {0}


def test_a_missing_a_second_and_a_wrong_result_are_found() -> None:
    killed = compared([result(0), result(0), result(2, text="no"), result(3, status=500)], 4)
    assert (killed.lost, killed.twice, killed.different) == (1, 1, 2)


def test_an_invalid_line_must_fail() -> None:
    assert compared([result(INVALID_EVERY - 1)], 1).different == 1


def test_random_cases_differ_and_are_the_same_each_time() -> None:
    cases = random_cases(30, most_new_tokens=8)
    assert len({case.prompt for case in cases}) == 30
    assert cases == random_cases(30, most_new_tokens=8)
    assert {case.seed is None for case in cases} == {True, False}


class Breaking:
    """Clients whose streams break at first, after some text."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    async def ask_for_stream(
        self, _case: Case, _most_chunks: int | None, *, heard: list[str], num_retries: int
    ) -> Answer:
        if self.texts:
            heard.append(self.texts.pop(0))
            raise httpx.RemoteProtocolError("the server was killed")
        return EXPECTED


def outcome_of(clients: Breaking, *, asks_again: bool) -> Crowd:
    crowd = Crowd(cast(Clients, clients), [Case(prompt="?", new_tokens=3)], [EXPECTED], asks_again=asks_again)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving_steps.crowd.LEAVE", 0.0)
        patch.setattr("serving_steps.crowd.STREAM", 1.0)
        asyncio.run(crowd.ask_one())
    return crowd


def test_a_broken_stream_is_asked_for_again_and_counts_once() -> None:
    crowd = outcome_of(Breaking("y", "ye"), asks_again=True)
    assert (crowd.outcomes, crowd.num_broken, crowd.num_open) == ({"answered in a stream": 1}, 2, 0)


def test_a_broken_stream_with_the_text_of_another_answer_is_found() -> None:
    assert outcome_of(Breaking("no"), asks_again=True).outcomes == {"mixed up": 1}


def test_a_broken_stream_fails_where_no_server_is_killed() -> None:
    assert outcome_of(Breaking("y"), asks_again=False).outcomes == {"failed": 1}


def test_there_are_enough_different_prompts_for_all_clients() -> None:
    assert len(set(read_prompts(40))) == 40


@pytest.mark.slow
@pytest.mark.timeout(20 * START_S)
@pytest.mark.parametrize("stage", ["together", "waiting", "soak", "kills"])
def test_a_stage_runs_and_no_promise_is_broken(tmp_path: Path, stage: str) -> None:
    figures = quick_figures(tmp_path, stage)
    assert figures["promises"]
    assert set(figures["promises"].values()) == {0}
    assert has_compared[stage](figures)


def quick_figures(folder: Path, stage: str) -> dict[str, Any]:
    """Run a stage's quick version and return its figures."""
    paths = [str(ROOT / "packages/layerstream/src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    where = ["--out", str(folder), "--work", str(folder), "--hardware", "tiny", "--date", "today"]
    script = [sys.executable, str(ROOT / "benchmarks/bench_serving.py"), "--quick", "--stages", stage]
    subprocess.run([*script, *where], check=True, env=environment)
    table = json.loads((folder / f"serving-{stage}_tiny_today.json").read_text())
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    figures: dict[str, Any] = table["figures"]
    return figures


def enough_together(figures: dict[str, Any]) -> bool:
    rounds = [each for level in figures["rounds"].values() for each in level]
    return sum(each["tokens"] for each in rounds) >= len(figures["alone"])


def enough_waited(figures: dict[str, Any]) -> bool:
    return all({"headers_ms", "first_byte_ms", "first_token_ms"} <= set(probe) for probe in figures["probes"])


def enough_soaked(figures: dict[str, Any]) -> bool:
    outcomes = Counter(figures["outcomes"])
    is_answered = outcomes["answered in a stream"] and outcomes["answered as a whole"]
    kills = figures["killed"]["kills"]
    return bool(is_answered) and sum(kills.values()) == 2


def enough_killed(figures: dict[str, Any]) -> bool:
    outcomes, deaths = Counter(figures["outcomes"]), figures["deaths"]
    is_answered = outcomes["answered in a stream"] and outcomes["answered as a whole"]
    return bool(is_answered) and len(deaths["open_requests"]) + deaths["starting"] == 2


has_compared = {
    "together": enough_together,
    "waiting": enough_waited,
    "soak": enough_soaked,
    "kills": enough_killed,
}
