"""Residency: the time of a decode sweep against the share of the weights that stays in memory.

Residents are a fixed set, spread evenly among the streamed blocks, so that reads go on while residents
compute.
"""

from __future__ import annotations

from pathlib import Path

from block_plans import load_planned, open_blocks, plan_blocks, resident_share
from common import (
    Outcome,
    arguments,
    drop_page_cache,
    environment,
    interleave,
    median,
    median_ratio,
    publish,
    verdict,
    work_directory,
)
from forwards import PROMPT_TOKENS, decode_seconds
from plots import line_plot
from random_llama import ONE_AND_A_HALF_GB, SMALL, LlamaShape, write_llama

import layerstream as ls

TARGET = 0.6
NOTES = [
    "One token per sweep, cold page cache before every pass, sweeps in a row with the first not counted. "
    "Every budget's model is loaded, measured and closed in turn, all budgets once per round. 'Of all "
    "streamed' is the median of the rounds' own ratios. Units are whole blocks at every budget.",
]


def main() -> int:
    options = arguments(__doc__)
    shape = SMALL if options.quick else ONE_AND_A_HALF_GB
    outcome = Outcome(
        theme="residency",
        title="A decode sweep by the share of the weights that stays",
        columns=("blocks resident", "bytes resident", "budget GiB", "sweep s", "of all streamed", "GB/s"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", shape)
        _measure(outcome, directory, shape, rounds=2 if options.quick else options.rounds or 7)
    points = outcome.figures["points"]
    shares = [(point["share"], median(point["sweep"])) for point in points]
    bound = [(share, shares[0][1] * (1 - share)) for share, _ in shares]
    outcome.svg = line_plot(
        {"measured": shares, "bytes left to read": bound},
        title=outcome.title,
        x="share of the weights resident",
        y="seconds per sweep",
    )
    return publish(outcome, options, facts)


def _measure(outcome: Outcome, directory: Path, shape: LlamaShape, rounds: int) -> None:
    workload = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=8)
    spec = open_blocks(directory)
    counts = [shape.num_blocks * quarter // 4 for quarter in range(5)]
    plans = {str(count): plan_blocks(spec, count, workload) for count in counts}

    def sweep(plan: ls.PlacementPlan) -> float:
        with load_planned(directory, plan) as streamed:
            drop_page_cache(directory)
            return decode_seconds(streamed, batch_size=1, steps=4)

    figures = interleave({name: lambda plan=plan: sweep(plan) for name, plan in plans.items()}, rounds=rounds)
    outcome.figures = {"points": []}
    for name, plan in plans.items():
        ratio = median_ratio(figures[name], figures["0"])
        share, sweep_s = resident_share(plan), median(figures[name])
        outcome.figures["points"].append(
            {"share": share, "map": plan.placement_map(), "ratio": ratio, "sweep": figures[name]}
        )
        budget = f"{plan.ledger.device_bytes / 1024**3:.2f}"
        rate = f"{plan.cost.read_bytes / sweep_s / 1e9:.2f}"
        outcome.rows.append(
            (f"{name} of {shape.num_blocks}", f"{share:.0%}", budget, f"{sweep_s:.3f}", f"{ratio:.3f}", rate)
        )
        if int(name) == shape.num_blocks // 2:
            outcome.verdicts.append(verdict("half of the blocks resident, of all streamed", ratio, TARGET))


if __name__ == "__main__":
    raise SystemExit(main())
