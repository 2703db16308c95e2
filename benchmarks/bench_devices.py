"""Devices: what two replicas read compared with one, and how long they take compared with one replica twice.

Replicas on the CPU share its cores, so two in one sweep can only save disk time compared with two sweeps of
one. Nothing here says how two accelerators compute in parallel.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import (
    Outcome,
    arguments,
    drop_page_cache,
    environment,
    interleave,
    median,
    median_ratio,
    publish,
    timed,
    verdict,
    work_directory,
)
from forwards import PROMPT_TOKENS
from random_llama import HALF_GB, SMALL, write_llama

import layerstream as ls

TARGET_BYTES = 1.05
TARGET_TIME = 0.75
NOTES = [
    "Everything is streamed (the least budget), with a cold page cache before every pass and greedy "
    "`generate()` of the same prompt length on every replica. *One replica, twice* does the work of two "
    "replicas on one device: two generations in turn. Bytes are those of the weight reads, counted by the "
    "reader. Embedding rows, a few kilobytes, are included, and so is what is prefetched for a sweep that "
    "does not come. Every replica computes on one thread. Ratios are medians of the rounds' own ratios.",
]


def main() -> int:
    options = arguments(__doc__)
    new_tokens, rounds = (6, 2) if options.quick else (12, options.rounds or 7)
    # With several threads each, replicas would compete for the cores, and those waits would be timed too.
    torch.set_num_threads(1)
    outcome = Outcome(
        theme="devices",
        title="Two replicas on one read",
        columns=("", "GB read", "of one replica's", "seconds", "of one replica, twice"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", SMALL if options.quick else HALF_GB)
        _measure(outcome, directory, new_tokens, rounds)
    return publish(outcome, options, facts)


def _measure(outcome: Outcome, directory: Path, new_tokens: int, rounds: int) -> None:
    workload = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=new_tokens)
    cases = {
        "one replica": (1, 1),
        "one replica, twice": (1, 2),
        "two replicas": (2, 1),
        "three replicas": (3, 1),
    }
    read: dict[str, list[int]] = {name: [] for name in cases}

    def run(name: str) -> float:
        replicas, times = cases[name]
        with ls.load(directory, budget="min", devices=["cpu"] * replicas, workload=workload) as streamed:
            drop_page_cache(directory)
            streamed.reset_report()
            seconds = timed(lambda: [_generate(streamed, new_tokens) for _ in range(times)])
            read[name].append(streamed.report().bytes_read)
        return seconds

    seconds = interleave({name: lambda name=name: run(name) for name in cases}, rounds=rounds)
    read = {name: figures[1:] for name, figures in read.items()}  # the first round warms up
    byte_ratios = {name: median_ratio(read[name], read["one replica"]) for name in cases}
    time_ratios = {name: median_ratio(seconds[name], seconds["one replica, twice"]) for name in cases}
    for name in cases:
        figures = (f"{median(read[name]) / 1e9:.2f}", f"{byte_ratios[name]:.3f}")
        times = (f"{median(seconds[name]):.2f}", f"{time_ratios[name]:.3f}")
        outcome.rows.append((name, *figures, *times))
    outcome.figures = {
        "seconds": seconds,
        "bytes_read": read,
        "byte_ratios": byte_ratios,
        "time_ratios": time_ratios,
    }
    outcome.verdicts = [
        verdict("bytes read for two replicas, of one replica's", byte_ratios["two replicas"], TARGET_BYTES),
        verdict("time of two replicas, of one replica's twice", time_ratios["two replicas"], TARGET_TIME),
    ]


def _generate(streamed: ls.StreamedModel, new_tokens: int) -> None:
    ids = torch.arange(3, 3 + PROMPT_TOKENS).reshape(1, -1)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    streamed.run_on_devices(lambda replica: replica.model.generate(input_ids=ids, **settings))


if __name__ == "__main__":
    raise SystemExit(main())
