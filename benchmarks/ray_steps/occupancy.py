"""Rows of different lengths: how full are the sweeps, when blocks share them and when they do not?"""

from __future__ import annotations

from pathlib import Path

from common import Outcome, verdict

import layerstream as ls
from layerstream.ray import requests as ray_requests
from layerstream.ray import workers as ray_workers
from layerstream.ray.workers import Workers
from ray_steps.counting_worker import CountingWorker
from ray_steps.job import Job, local_ray, notes_of

STAGE = "occupancy"
MOST_ROWS, MOST_TOKENS = 8, 40


def run(job: Job) -> Outcome:
    """Compare, and return the table."""
    num_rows = 160 if job.is_quick else 2000
    outcome = Outcome(
        theme=f"ray-{STAGE}",
        title="How full sweeps are on Ray",
        columns=("blocks at once", "occupancy", "most rows together", "sweeps"),
    )
    shares = {}
    for blocks_at_once in (ray_workers.BLOCKS_AT_ONCE, 1):
        notes = job.work / f"notes-{blocks_at_once}"
        with local_ray(notes):
            _answer_uneven(job.tiny, num_rows, blocks_at_once)
        last = max(notes_of(notes), key=lambda note: note["sweeps"])
        share = last["generated_tokens"] / last["sweeps"] / last["most_running"]
        shares[blocks_at_once] = share
        outcome.rows.append(
            (f"{blocks_at_once}", f"{share:.1%}", f"{last['most_running']}", f"{last['sweeps']:,}")
        )
    outcome.figures["occupancy"] = shares
    joining = shares[ray_workers.BLOCKS_AT_ONCE]
    outcome.verdicts.append(verdict("occupancy with rows joining", joining, 0.9, at_most=False))
    outcome.notes.append(
        f"{num_rows:,} rows in blocks of {MOST_ROWS}, one worker, a tiny random Llama. A row ends by chance "
        f"after 1 to {MOST_TOKENS} tokens. Occupancy: tokens by sweeps, as a share of the most rows that ran "
        "together."
    )
    return outcome


def _answer_uneven(model: Path, num_rows: int, blocks_at_once: int) -> None:
    """Answer rows that take the same memory, and that end by chance."""
    prompts = [
        ls.GenerationRequest(
            prompt=[5] * 8,
            max_new_tokens=MOST_TOKENS,
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
            max_rows=MOST_ROWS,
            on_result=_refuse_error,
        )
    finally:
        ray_requests.BLOCKS_AT_ONCE = ray_workers.BLOCKS_AT_ONCE  # type: ignore[misc]


def _refuse_error(result: ls.GenerationResult) -> None:
    """Raise a result's error."""
    if result.error is not None:
        raise result.error
