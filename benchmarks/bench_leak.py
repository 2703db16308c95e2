"""Leaks: memory, threads and open files before and after a thousand streamed sweeps, and many loads."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import torch
from common import (
    Outcome,
    arguments,
    environment,
    publish,
    verdict,
    work_directory,
)
from random_llama import TINY, write_llama

import layerstream as ls

TARGET_MIB = 1.0
NOTES = [
    "Sweeps: forwards of a tiny model with the key-value cache, 50 per cache, after 200 to warm up. Loads: "
    "load, one generation, close, after 5 to warm up. Memory is the process's anonymous memory after a "
    "garbage collection.",
]


def main() -> int:
    options = arguments(__doc__)
    sweeps, loads = (200, 5) if options.quick else (1000, 50)
    outcome = Outcome(
        theme="leak",
        title="A thousand sweeps and many loads",
        columns=("", "anonymous MiB before", "after", "growth", "threads", "open files"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", TINY)
        _measure_sweeps(outcome, directory, sweeps)
        _measure_loads(outcome, directory, loads)
    return publish(outcome, options, facts)


def _measure_sweeps(outcome: Outcome, directory: Path, sweeps: int) -> None:
    with ls.load(directory, device="cpu", budget="min") as streamed:
        _sweep(streamed, 200)
        before = _held()
        _sweep(streamed, sweeps)
        _add(outcome, f"{sweeps} sweeps", before, _held())


def _sweep(streamed: ls.StreamedModel, sweeps: int) -> None:
    token = torch.tensor([[5]])
    for _ in range(sweeps // 50):
        cache = None
        for _ in range(50):
            cache = streamed(input_ids=token, past_key_values=cache, use_cache=True).past_key_values


def _measure_loads(outcome: Outcome, directory: Path, loads: int) -> None:
    def load_once() -> None:
        with ls.load(directory, device="cpu", budget="min") as streamed:
            streamed.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)

    for _ in range(5):
        load_once()
    before = _held()
    for _ in range(loads):
        load_once()
    _add(outcome, f"{loads} loads", before, _held())


def _held() -> tuple[float, int, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    anonymous_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    return anonymous_kib / 1024, threading.active_count(), len(os.listdir("/proc/self/fd"))


def _add(outcome: Outcome, name: str, before: tuple[float, int, int], after: tuple[float, int, int]) -> None:
    growth = after[0] - before[0]
    counts = (f"{before[1]} → {after[1]}", f"{before[2]} → {after[2]}")
    outcome.rows.append((name, f"{before[0]:.2f}", f"{after[0]:.2f}", f"{growth:+.2f}", *counts))
    outcome.verdicts.append(verdict(f"{name}: growth in MiB", growth, TARGET_MIB))
    outcome.figures[name] = {"before": before, "after": after}


if __name__ == "__main__":
    raise SystemExit(main())
