"""Answer rows on a local Ray: kills, how full the sweeps are, and what Ray costs a row.

kills      a job with a progress_dir, whose driver and workers are killed at random moments: is each row
           answered once, as `generate_many` answers it, and how many rows are answered again?
occupancy  rows of different lengths, with blocks that share sweeps and with one block at a time
overhead   `layerstream batch --ray local` with one worker against `layerstream batch --no-packed`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from common import (
    Outcome,
    environment,
    interleave,
    median,
    median_ratio,
    option_parser,
    publish,
    verdict,
    work_directory,
)
from random_llama import LlamaShape, write_llama
from ray_steps.counting_worker import FOLDER, CountingWorker

import layerstream as ls
from layerstream.ray import requests as ray_requests
from layerstream.ray import workers as ray_workers
from layerstream.ray.workers import Workers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages" / "layerstream" / "tests"))

from kit.tiny_llama import save_tiny_llama

HERE = Path(__file__).resolve().parent
STAGES = ("kills", "occupancy", "overhead")
NEW_TOKENS, PROMPT_TOKENS, BLOCK_ROWS = 8, 48, 16
DISK_BOUND = LlamaShape(
    hidden_size=2048, intermediate_size=5632, num_blocks=8, num_heads=16, num_kv_heads=8, vocab_size=128
)
WAIT_S = 180.0


def main() -> int:
    """Run the stages and publish what they found."""
    parser = option_parser(__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="which to run, separated by commas")
    options = parser.parse_args()
    outcome = Outcome(theme="ray", title="Rows on a local Ray", columns=("", "found"))
    with work_directory(options) as work:
        facts = environment(work)
        model = save_tiny_llama(work / "tiny")
        for stage in options.stages.split(","):
            {"kills": kills, "occupancy": occupancy, "overhead": overhead}[stage](
                outcome, options, work, model
            )
    outcome.notes.append(
        "A local Ray with 6 logical CPUs and a `layerstream_disk` for each worker. The model is a random "
        "Llama of 4 blocks (hidden 64); for the overhead, one of 8 blocks (hidden 2048), read from disk."
    )
    return publish(outcome, options, facts | {"ray": ray.__version__})


@contextmanager
def local_ray(notes: Path) -> Iterator[str]:
    """Start a local Ray whose processes know this folder, and give its address."""
    notes.mkdir()
    os.environ[FOLDER] = str(notes)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    context = ray.init(
        num_cpus=6,
        resources={ray_workers.DISK: 2},
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()


# -- kills ------------------------------------------------------------------------------------------------


def kills(outcome: Outcome, options: argparse.Namespace, work: Path, model: Path) -> None:
    """Kill the driver and the workers of a job until it was killed often enough, then let it end."""
    num_rows, num_kills = (120, 3) if options.quick else (2000, 20)
    texts = [f"{number}:" + "ab " * (number % 9) for number in range(num_rows)]
    pq.write_table(pa.table({"id": range(num_rows), "text": texts}), work / "rows.parquet")
    with local_ray(work / "kill-notes") as address:
        killed = run_and_kill(address, work, model, num_kills)
        answered = pq.read_table(work / "answers").to_pylist()
    expected = plain_answers(model, texts)
    times = Counter(row["id"] for row in answered)
    noted = Counter(id_ for note in notes_of(work / "kill-notes") for id_ in note["ids"])
    found = {
        "rows": num_rows,
        "kills of the driver": killed["driver"],
        "kills of a worker": killed["worker"],
        "rows lost": num_rows - len(times),
        "rows twice": sum(times.values()) - len(times),
        "answers that differ": sum(row["tokens"] != expected[row["id"]] for row in answered),
        # blocks that were answered whole and then answered again; half-answered ones come on top
        "rows answered again, after whole blocks": sum(noted.values()) - len(noted),
    }
    outcome.rows += [(f"kills: {name}", f"{value:,}") for name, value in found.items()]
    outcome.figures["kills"] = found
    wrong = found["rows lost"] + found["rows twice"] + found["answers that differ"]
    outcome.verdicts.append(verdict("rows lost, twice or different after kills", wrong, 0))
    blocks = found["rows answered again, after whole blocks"] / BLOCK_ROWS / max(1, sum(killed.values()))
    outcome.verdicts.append(verdict("blocks answered again for each kill", blocks, 1))


def run_and_kill(address: str, work: Path, model: Path, num_kills: int) -> Counter[str]:
    """Return how often the driver and the workers were killed until the job was done."""
    chance = random.Random(0)
    killed: Counter[str] = Counter()
    driver = start_driver(address, work, model)
    while True:
        if not wait_for_progress(work, driver, chance, may_end=sum(killed.values()) >= num_kills):
            return killed
        if chance.random() < 0.5 and (workers := worker_processes()):
            chance.choice(workers).kill()
            killed["worker"] += 1
        else:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            killed["driver"] += 1
            driver = start_driver(address, work, model)


def start_driver(address: str, work: Path, model: Path) -> subprocess.Popen[bytes]:
    """Start the job, or start it again."""
    settings = {
        "model": str(model),
        "budget": "min",
        "max_new_tokens": NEW_TOKENS,
        "prompt_tokens": PROMPT_TOKENS,
        "rows_per_block": BLOCK_ROWS,
        "concurrency": 2,
        "progress_dir": str(work / "progress"),
    }
    paths = (str(work / "rows.parquet"), str(work / "answers"))
    return subprocess.Popen(
        [sys.executable, "-m", "ray_steps.driver", address, *paths, json.dumps(settings)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def wait_for_progress(
    work: Path, driver: subprocess.Popen[bytes], chance: random.Random, *, may_end: bool
) -> bool:
    """Wait until a block was written since, and a random moment longer; False if the job is done."""
    before, deadline_s = num_written(work), monotonic() + WAIT_S
    while may_end or num_written(work) == before:
        if driver.poll() is not None:
            if driver.returncode:
                raise RuntimeError(f"the driver failed with status {driver.returncode}")
            return False
        if monotonic() > deadline_s:
            raise RuntimeError("nothing was written for too long")
        sleep(0.02)
        if may_end and num_written(work) != before:
            before, deadline_s = num_written(work), monotonic() + WAIT_S
    sleep(chance.random())
    return True


def num_written(work: Path) -> int:
    """Return how many blocks are committed."""
    return sum(not path.name.endswith(".pending.parquet") for path in work.glob("progress/*.parquet"))


def worker_processes() -> list[psutil.Process]:
    """Return the processes of the workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "CountingWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def plain_answers(model: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return the answers of one machine."""
    workload = ls.Workload(batch_size=BLOCK_ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    with ls.load(model, budget="min", workload=workload) as streamed:
        prompts = [ls.GenerationRequest(prompt=text, max_new_tokens=NEW_TOKENS) for text in texts]
        return [list(result.tokens) for result in ls.generate_many(streamed, prompts, packed=False)]


def notes_of(folder: Path) -> list[dict[str, Any]]:
    """Return what the workers noted, without a line that a killed one has torn."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


# -- occupancy --------------------------------------------------------------------------------------------


def occupancy(outcome: Outcome, options: argparse.Namespace, work: Path, model: Path) -> None:
    """Compare the rows in a sweep with the most that ran together, with and without sharing across blocks."""
    num_rows = 160 if options.quick else 2000
    shares = {}
    for blocks_at_once in (ray_workers.BLOCKS_AT_ONCE, 1):
        notes = work / f"occupancy-{blocks_at_once}"
        with local_ray(notes):
            answer_uneven(model, num_rows, blocks_at_once)
        last = max(notes_of(notes), key=lambda note: note["sweeps"])
        shares[blocks_at_once] = last["generated_tokens"] / last["sweeps"] / last["most_running"]
        outcome.rows.append(
            (
                f"occupancy: {blocks_at_once} block{'s' if blocks_at_once > 1 else ''} at once",
                f"{shares[blocks_at_once]:.1%} of {last['most_running']} rows, {last['sweeps']:,} sweeps",
            )
        )
    outcome.figures["occupancy"] = shares
    outcome.verdicts.append(
        verdict("occupancy with rows joining", shares[ray_workers.BLOCKS_AT_ONCE], 0.9, at_most=False)
    )


def answer_uneven(model: Path, num_rows: int, blocks_at_once: int) -> None:
    """Answer rows that take the same memory, and that end by chance after any number of tokens up to 40."""
    prompts = [
        ls.GenerationRequest(
            prompt=[5] * 8,
            max_new_tokens=40,
            do_sample=True,
            seed=number,
            options={"eos_token_id": list(range(2, 12))},
        )
        for number in range(num_rows)
    ]
    ray_requests.GenerationWorker = CountingWorker  # type: ignore[misc]
    ray_requests.BLOCKS_AT_ONCE = blocks_at_once  # type: ignore[misc]
    try:
        ray_requests.generate_on_ray(
            prompts,
            model=str(model),
            options=ls.LoadOptions(budget="min"),
            workers=Workers(),
            max_rows=8,
            on_result=refuse_error,
        )
    finally:
        ray_requests.BLOCKS_AT_ONCE = ray_workers.BLOCKS_AT_ONCE  # type: ignore[misc]


def refuse_error(result: ls.GenerationResult) -> None:
    """Raise a result's error."""
    if result.error is not None:
        raise result.error


# -- overhead ---------------------------------------------------------------------------------------------


def overhead(outcome: Outcome, options: argparse.Namespace, work: Path, model: Path) -> None:
    """Compare the seconds of a row on Ray and without it, from the first result to the last."""
    rounds = options.rounds or (1 if options.quick else 3)
    num_rows = 64 if options.quick else 160
    if not options.quick:
        tokenizer = model
        model = write_llama(work / "disk-bound", DISK_BOUND)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, model / name)
    ways = {"plain": ("--no-packed",), "on Ray": ("--ray", "local")}
    row_s = interleave(
        {name: partial(seconds_of_a_row, work, model, num_rows, way) for name, way in ways.items()},
        rounds=rounds,
        warmups=0,
    )
    outcome.figures["overhead"] = row_s
    for name, seconds in row_s.items():
        outcome.rows.append((f"overhead: a row, {name}", f"{median(seconds) * 1000:,.1f} ms"))
    ratio = median_ratio(row_s["on Ray"], row_s["plain"])
    outcome.verdicts.append(verdict("time of a row on Ray against plain", ratio, 1.05))


def seconds_of_a_row(work: Path, model: Path, num_rows: int, way: Sequence[str]) -> float:
    """Return the seconds of each row that `layerstream batch` answers after its first results."""
    rows, results = work / "batch.jsonl", work / "batch-results.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"row {number:4}"}) + "\n" for number in range(num_rows)))
    results.unlink(missing_ok=True)
    settings = ("--model", str(model), "--budget", "min", "-n", "8", "--max-rows", "8", "--quiet", *way)
    command = [sys.executable, "-m", "layerstream", "batch", str(rows), str(results), *settings]
    seen: dict[int, float] = {}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        # the first line is the header
        seen.setdefault(results.read_bytes().count(b"\n") - 1 if results.exists() else 0, monotonic())
        sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}")
    first, last = min(number for number in seen if number > 0), max(seen)
    return (seen[last] - seen[first]) / (last - first)


if __name__ == "__main__":
    sys.exit(main())
