"""What the stages share: models, a local Ray, a driver, and what the workers noted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from layerstream.ray.workers import DISK
from ray_steps.counting_worker import FOLDER

BENCHMARKS = Path(__file__).resolve().parent.parent
NUM_CPUS = 6
"""Logical CPUs of the local Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run of one stage.

    Attributes:
        work: an empty folder of its own.
        tiny: a tiny model with a tokenizer.
        default: the default model; in a quick run, the tiny one.
        models: which of the two `kills` takes.
        killed_rows: the rows of its job.
        num_kills: how often it kills.
        rounds: rounds of what is timed.
        rate: the limit on reads in bytes per second; 0 is none.
        is_quick: a try whose speeds mean nothing.
    """

    work: Path
    tiny: Path
    default: Path
    models: tuple[str, ...]
    killed_rows: int
    num_kills: int
    rounds: int
    rate: int
    is_quick: bool


@contextmanager
def local_ray(notes: Path) -> Iterator[str]:
    """Start a local Ray whose workers write into the folder `notes`, and give its address."""
    notes.mkdir()
    os.environ[FOLDER] = str(notes)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
    context = ray.init(
        num_cpus=NUM_CPUS,
        resources={DISK: 2},
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()


def start_driver(
    address: str, rows: Path, answers: Path, settings: Mapping[str, Any]
) -> subprocess.Popen[bytes]:
    """Start a job in a process of its own, or start it again; what it prints is in `log_of(answers)`."""
    command = [sys.executable, "-m", "ray_steps.driver", address, str(rows), str(answers)]
    with log_of(answers).open("ab") as log:
        return subprocess.Popen([*command, json.dumps(settings)], cwd=BENCHMARKS, stderr=log, stdout=log)


def log_of(answers: Path) -> Path:
    """Return the log of the job that writes `answers`."""
    return answers.with_suffix(".log")


def refuse_failure(driver: subprocess.Popen[bytes], answers: Path) -> None:
    """Raise what a driver that has ended said last, if it failed."""
    if driver.wait():
        last = log_of(answers).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the driver failed with status {driver.returncode}: {last}")


def notes_of(folder: Path) -> list[dict[str, Any]]:
    """Return what the workers noted, without a line that a killed one has torn."""
    return [json.loads(line) for line in _whole_lines(folder, "*.jsonl")]


def answered_rows_of(folder: Path) -> Counter[int]:
    """Return how often the workers answered each row, whether or not its block was finished."""
    return Counter(int(line) for line in _whole_lines(folder, "*.rows"))


def _whole_lines(folder: Path, pattern: str) -> list[str]:
    lines = [line for path in folder.glob(pattern) for line in path.read_text().splitlines(keepends=True)]
    return [line for line in lines if line.endswith("\n")]
