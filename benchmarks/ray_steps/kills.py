"""A job whose driver and workers are killed at random moments: what is lost, twice, different or repeated?"""

from __future__ import annotations

import random
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from common import Outcome, verdict

import layerstream as ls
from ray_steps.job import Job, answered_rows_of, local_ray, notes_of, refuse_failure, start_driver

STAGE = "kills"
BLOCK_ROWS, PROMPT_TOKENS = 16, 48
NEW_TOKENS = {"tiny": 8, "default": 4}
WAIT_S = 1200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KilledJob:
    """A job that goes on after each kill.

    Attributes:
        folder: where its rows, answers and progress are.
        settings: keywords of `layerstream.ray.generate`.
        num_kills: how often something is killed.
    """

    folder: Path
    settings: dict[str, Any]
    num_kills: int

    def start(self, address: str) -> subprocess.Popen[bytes]:
        """Start its driver."""
        return start_driver(address, self.folder / "rows.parquet", self.folder / "answers", self.settings)

    def num_written(self) -> int:
        """Return how many blocks are committed."""
        written = self.folder.glob("progress/written/*.parquet")
        return sum(not path.name.endswith(".pending.parquet") for path in written)


def run(job: Job) -> Outcome:
    """Kill and compare, and return the table."""
    outcome = Outcome(
        theme=f"ray-{STAGE}",
        title="Rows on a local Ray whose processes are killed",
        columns=("", *job.models),
    )
    found = {name: _found(job, name) for name in job.models}
    for key in next(iter(found.values())):
        outcome.rows.append((key, *(f"{each[key]:,}" for each in found.values())))
    for name, each in found.items():
        wrong = each["rows lost"] + each["rows twice"] + each["answers that differ"]
        kills = each["kills of the driver"] + each["kills of a worker"]
        blocks = each["rows answered again"] / BLOCK_ROWS / max(1, kills)
        outcome.verdicts.append(verdict(f"{name}: rows lost, twice or different", wrong, 0))
        outcome.verdicts.append(
            verdict(f"{name}: blocks' worth of rows answered again for each kill", blocks, 1)
        )
    outcome.figures.update(found)
    outcome.notes.append(
        f"Two workers, blocks of {BLOCK_ROWS} rows, and SIGKILL at a random moment after each block that is "
        "written. A row counts as answered again if an earlier answer was complete. The answers are compared "
        "with those of `generate_many` in one process. The tiny model is a random Llama of 4 blocks (hidden "
        "64); the default one is SmolLM2-135M-Instruct."
    )
    return outcome


def _found(job: Job, name: str) -> dict[str, int]:
    model, new_tokens = (job.tiny if name == "tiny" else job.default), NEW_TOKENS[name]
    folder = job.work / name
    folder.mkdir()
    texts = [f"{number}:" + " and so on" * (number % 4) for number in range(job.killed_rows)]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), folder / "rows.parquet")
    settings = {
        "model": str(model),
        "budget": "min",
        "max_new_tokens": new_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "rows_per_block": BLOCK_ROWS,
        "concurrency": 2,
        "id_column": "id",
        "progress_dir": str(folder / "progress"),
    }
    with local_ray(folder / "notes") as address:
        killed = _run_and_kill(KilledJob(folder=folder, settings=settings, num_kills=job.num_kills), address)
    answered = pq.read_table(folder / "answers").to_pylist()
    expected = _plain_answers(model, texts, new_tokens)
    times = Counter(row["id"] for row in answered)
    in_blocks = Counter(id_ for note in notes_of(folder / "notes") for id_ in note["ids"])
    rows = answered_rows_of(folder / "notes")
    return {
        "rows": len(texts),
        "kills of the driver": killed["driver"],
        "kills of a worker": killed["worker"],
        "rows lost": len(texts) - len(times),
        "rows twice": sum(times.values()) - len(times),
        "answers that differ": sum(row["tokens"] != expected[row["id"]] for row in answered),
        "rows answered again": sum(rows.values()) - len(rows),
        "of these, in blocks that were finished": sum(in_blocks.values()) - len(in_blocks),
    }


def _run_and_kill(job: KilledJob, address: str) -> Counter[str]:
    """Return how often the driver and the workers were killed until the job was done."""
    chance = random.Random(0)
    killed: Counter[str] = Counter()
    driver = job.start(address)
    while _wait_for_progress(job, driver, chance, may_end=sum(killed.values()) >= job.num_kills):
        if chance.random() < 0.5 and (workers := _worker_processes()):
            chance.choice(workers).kill()
            killed["worker"] += 1
        else:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            killed["driver"] += 1
            driver = job.start(address)
    return killed


def _wait_for_progress(
    job: KilledJob, driver: subprocess.Popen[bytes], chance: random.Random, *, may_end: bool
) -> bool:
    """Wait until a block was written since, and a random moment longer; False if the job is done."""
    before, deadline_s = job.num_written(), monotonic() + WAIT_S
    while may_end or job.num_written() == before:
        if driver.poll() is not None:
            refuse_failure(driver, job.folder / "answers")
            return False
        if monotonic() > deadline_s:
            raise RuntimeError("nothing was written for too long")
        sleep(0.02)
        if may_end and job.num_written() != before:
            before, deadline_s = job.num_written(), monotonic() + WAIT_S
    sleep(chance.random())
    return True


def _worker_processes() -> list[psutil.Process]:
    """Return the processes of the workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "CountingWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _plain_answers(model: Path, texts: Sequence[str], new_tokens: int) -> list[list[int]]:
    """Return the answers of one process."""
    workload = ls.Workload(batch_size=BLOCK_ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=new_tokens)
    request = partial(ls.GenerationRequest, max_new_tokens=new_tokens)
    with ls.load(model, budget="min", workload=workload) as streamed:
        results = ls.generate_many(streamed, [request(prompt=text) for text in texts], packed=False)
        return [list(result.tokens) for result in results]
