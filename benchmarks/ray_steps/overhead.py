"""What a row costs on Ray and without it, where the disk is the limit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from time import monotonic, sleep

from cold_files import drop_page_cache
from common import Outcome, interleave, median, median_ratio, verdict
from read_limit import ReadLimit, read_limited

from ray_steps.job import Job

STAGE = "overhead"
WAYS = {"plain": ("--no-packed",), "on Ray": ("--ray", "local")}
MOST_ROWS, NEW_TOKENS = 8, 8
TARGET = 1.05


def run(job: Job) -> Outcome:
    """Measure, and return the table."""
    num_rows = 64
    with read_limited(job.default) as reads:
        reads.set(job.rate)
        has_limit = bool(reads.group) and job.rate > 0
        row_s = interleave(
            {name: partial(_seconds_of_a_row, job, reads, num_rows, way) for name, way in WAYS.items()},
            rounds=job.rounds,
            warmups=0,
        )
    outcome = Outcome(
        theme=f"ray-{STAGE}",
        title="What a row costs on Ray",
        columns=("`layerstream batch`", "a row, ms"),
        figures={"row_s": row_s},
    )
    outcome.rows = [(name, f"{median(seconds) * 1000:,.1f}") for name, seconds in row_s.items()]
    ratio = median_ratio(row_s["on Ray"], row_s["plain"])
    outcome.verdicts.append(verdict("time of a row on Ray against plain", ratio, TARGET))
    limit = f"limited to {job.rate / 1e6:.0f} MB/s" if has_limit else "not limited"
    outcome.notes.append(
        f"{num_rows} rows, {MOST_ROWS} at once, {NEW_TOKENS} new tokens each, one worker, reads {limit}, "
        f"{job.rounds} rounds in turns. Timed from the first results to the last, so without the start of "
        "Ray and of the worker."
    )
    return outcome


def _entering(reads: ReadLimit) -> list[str]:
    """Return what puts a command that follows, and all that it starts, under the limit."""
    if not reads.group:
        return []
    return ["sh", "-c", 'echo $$ > "$0"; exec "$@"', f"{reads.group}/cgroup.procs"]


def _seconds_of_a_row(job: Job, reads: ReadLimit, num_rows: int, way: Sequence[str]) -> float:
    """Return the seconds of each row that `layerstream batch` answers after its first results."""
    rows, results = job.work / "rows.jsonl", job.work / "results.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"row {number:4}"}) + "\n" for number in range(num_rows)))
    results.unlink(missing_ok=True)
    settings = ("--budget", "min", "-n", str(NEW_TOKENS), "--max-rows", str(MOST_ROWS), "--quiet", *way)
    command = [sys.executable, "-m", "layerstream", "batch", str(rows), str(results)]
    command += ["--model", str(job.default), *settings]
    drop_page_cache(job.default)
    seen: dict[int, float] = {}
    process = subprocess.Popen([*_entering(reads), *command], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        # the first line is the header
        seen.setdefault(results.read_bytes().count(b"\n") - 1 if results.exists() else 0, monotonic())
        sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}")
    first, last = min((number for number in seen if number > 0), default=0), max(seen)
    if first == last:
        raise RuntimeError(f"{last} results came between two looks: give more rows")
    return (seen[last] - seen[first]) / (last - first)
