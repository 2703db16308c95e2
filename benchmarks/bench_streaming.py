"""Streaming: one sweep with everything streamed, against its reads alone and its forward alone.

A perfect pipeline takes the longer of the two, for any number of tokens per sweep. All three are measured in
one process, interleaved. The page cache of the checkpoint is dropped before every pass, and every figure is
of the steady state: sweeps in a row, the first not counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from block_plans import BareReads, load_planned, open_blocks, plan_blocks
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
from forwards import PROMPT_TOKENS, decode_seconds
from plots import line_plot
from random_llama import ONE_AND_A_HALF_GB, SMALL, write_llama

import layerstream as ls

TARGET = 1.10
NOTES = [
    "Sweep: one decode step with every block streamed from a cold disk. Reads: the same requests by the "
    "same reader into as many buffers, nothing computed. Forward: the same step with everything resident. "
    "Medians over rounds. 'Ratio' is the median of the rounds' own sweep / max(reads, forward); 'serial' is "
    "that of (reads + forward) / max(reads, forward), which is what no overlap would give.",
]


def main() -> int:
    options = arguments(__doc__)
    batches = (1, 8) if options.quick else (1, 8, 16, 32, 64, 128)
    rounds, sweeps = (2, 2) if options.quick else (options.rounds or 7, 4)
    outcome = Outcome(
        theme="streaming",
        title="One sweep, all streamed, against its bounds",
        columns=(
            "tokens per sweep",
            "sweep s",
            "reads s",
            "forward s",
            "ratio",
            "serial",
            "GB/s",
            "tokens/s",
        ),
        notes=list(NOTES),
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", SMALL if options.quick else ONE_AND_A_HALF_GB)
        _measure(outcome, directory, batches, rounds, sweeps)
    points = outcome.figures["points"]
    series = {
        name: [(p["tokens"], median(p[name])) for p in points] for name in ("sweep", "reads", "forward")
    }
    outcome.svg = line_plot(series, title=outcome.title, x="tokens per sweep", y="seconds", log_x=True)
    return publish(outcome, options, facts)


def _measure(outcome: Outcome, directory: Path, batches: tuple[int, ...], rounds: int, sweeps: int) -> None:
    workload = ls.Workload(batch_size=max(batches), prompt_tokens=PROMPT_TOKENS, new_tokens=sweeps + 2)
    plan = plan_blocks(open_blocks(directory), 0, workload)
    reads = BareReads(directory, plan)
    outcome.notes.append("The plan:\n\n```\n" + plan.explain().replace(str(directory), "model") + "\n```")
    outcome.figures = {"plan": plan.placement_map(), "read_bytes": reads.read_bytes, "points": []}
    with (
        load_planned(directory, plan) as streamed,
        ls.load(directory, device="cpu", workload=workload) as resident,
    ):
        assert resident.plan.is_resident, "too little memory for the forward with everything resident"
        for tokens in batches:
            point = _point(directory, streamed, resident, reads, tokens=tokens, rounds=rounds, sweeps=sweeps)
            outcome.figures["points"].append(point)
            outcome.rows.append(_row(point, reads.read_bytes))
            outcome.verdicts.append(
                verdict(f"{tokens} tokens per sweep: sweep / max(reads, forward)", point["ratio"], TARGET)
            )
    reads.close()


def _point(
    directory: Path,
    streamed: ls.StreamedModel,
    resident: ls.StreamedModel,
    reads: BareReads,
    *,
    tokens: int,
    rounds: int,
    sweeps: int,
) -> dict[str, Any]:
    def sweep() -> float:
        drop_page_cache(directory)
        return decode_seconds(streamed, batch_size=tokens, steps=sweeps)

    def bare() -> float:
        drop_page_cache(directory)
        reads.read(1)
        return timed(lambda: reads.read(sweeps)) / sweeps

    def forward() -> float:
        return decode_seconds(resident, batch_size=tokens, steps=sweeps)

    figures = interleave({"sweep": sweep, "reads": bare, "forward": forward}, rounds=rounds)
    bounds = [max(pair) for pair in zip(figures["reads"], figures["forward"], strict=True)]
    serial = [sum(pair) for pair in zip(figures["reads"], figures["forward"], strict=True)]
    return {
        "tokens": tokens,
        **figures,
        "ratio": median_ratio(figures["sweep"], bounds),
        "serial": median_ratio(serial, bounds),
    }


def _row(point: dict[str, Any], read_bytes: int) -> tuple[str, ...]:
    sweep_s = median(point["sweep"])
    times = (f"{median(point[name]):.3f}" for name in ("sweep", "reads", "forward"))
    rates = (f"{read_bytes / sweep_s / 1e9:.2f}", f"{point['tokens'] / sweep_s:.1f}")
    return (str(point["tokens"]), *times, f"{point['ratio']:.3f}", f"{point['serial']:.3f}", *rates)


if __name__ == "__main__":
    raise SystemExit(main())
