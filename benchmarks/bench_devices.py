"""Several replicas: how much is read for two replicas beside one, and how long they take together against one after the other.

Lanes on the CPU share its cores, so a sweep of two can be shorter than two sweeps of one only by what the disk takes: nothing here
says how two accelerators compute side by side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import (
    HALF_GB,
    SMALL,
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
    write_llama,
)
from forwards import PROMPT_TOKENS

import layerstream as ls

WANTED_BYTES = 1.05
WANTED_TIME = 0.75
NOTES = [
    "Everything is streamed (the least budget), cold page cache before every pass, greedy `generate()` of the same prompt length "
    "on every replica. *One replica, twice* is the same work as two replicas' on one device: two generations in turn. Bytes are "
    "those of the weights' reads, counted by the reader; embedding rows, a few kilobytes, are included. What is prefetched for a "
    "sweep that does not come is included too. Every replica computes on one thread. Ratios are medians of the rounds' own.",
]


def main() -> int:
    options = arguments(__doc__)
    new_tokens, rounds = (6, 2) if options.quick else (12, options.rounds or 7)
    # Lanes with several computing threads each would fight for the cores, and what waits for a core would be timed.
    torch.set_num_threads(1)
    outcome = Outcome(
        theme="replicas",
        title="Two replicas on one reading",
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
        gigabytes = f"{median(read[name]) / 1e9:.2f}"
        outcome.rows.append(
            (
                name,
                gigabytes,
                f"{byte_ratios[name]:.3f}",
                f"{median(seconds[name]):.2f}",
                f"{time_ratios[name]:.3f}",
            )
        )
    outcome.figures = {
        "seconds": seconds,
        "bytes_read": read,
        "byte_ratios": byte_ratios,
        "time_ratios": time_ratios,
    }
    outcome.verdicts = [
        verdict("bytes read for two replicas, of one replica's", byte_ratios["two replicas"], WANTED_BYTES),
        verdict("time of two replicas, of one replica's twice", time_ratios["two replicas"], WANTED_TIME),
    ]


def _generate(streamed: ls.StreamedModel, new_tokens: int) -> None:
    ids = torch.arange(3, 3 + PROMPT_TOKENS).reshape(1, -1)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    streamed.run_on_devices(lambda replica, _: replica.generate(input_ids=ids, **settings))


if __name__ == "__main__":
    raise SystemExit(main())
