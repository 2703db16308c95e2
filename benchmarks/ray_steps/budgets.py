"""Two jobs at the same time, whose workers have different budgets: does each stay within its own?"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from common import MIB, Outcome, verdict

import layerstream as ls
from ray_steps.job import Job, local_ray, notes_of, refuse_failure, start_driver

STAGE = "budgets"
BLOCK_ROWS, PROMPT_TOKENS, NEW_TOKENS = 8, 48, 4
MORE_BYTES = 100 * MIB
"""What the second worker has beyond the least budget."""


def run(job: Job) -> Outcome:
    """Measure, and return the table."""
    num_rows = 32 if job.is_quick else 200
    workload = ls.Workload(batch_size=BLOCK_ROWS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    least = ls.plan(job.default, device="cpu", budget="min", workload=workload).ledger.device_bytes
    budgets = [least, least + MORE_BYTES]
    texts = [f"{number} is a number" for number in range(num_rows)]
    pq.write_table(pa.table({"id": range(num_rows), "text": texts}), job.work / "rows.parquet")
    with local_ray(job.work / "notes") as address:
        drivers = {
            budget: start_driver(
                address,
                job.work / "rows.parquet",
                _place(job, budget),
                {
                    "model": str(job.default),
                    "budget": budget,
                    "max_new_tokens": NEW_TOKENS,
                    "prompt_tokens": PROMPT_TOKENS,
                    "rows_per_block": BLOCK_ROWS,
                },
            )
            for budget in budgets
        }
        try:
            for budget, driver in drivers.items():
                refuse_failure(driver, _place(job, budget))
        finally:
            for driver in drivers.values():
                driver.kill()
    answers = [_answers(job, budget) for budget in budgets]
    differ = sum(answers[0].get(number) != answers[1].get(number) for number in range(num_rows))
    return _outcome(job, budgets, num_rows, differ)


def _place(job: Job, budget: int) -> Path:
    """Return where the answers with this budget are."""
    return job.work / f"answers-{budget}"


def _answers(job: Job, budget: int) -> dict[int, list[int]]:
    rows = pq.read_table(_place(job, budget)).to_pylist()
    return {row["id"]: row["tokens"] for row in rows}


def _outcome(job: Job, budgets: list[int], num_rows: int, differ: int) -> Outcome:
    outcome = Outcome(
        theme=f"ray-{STAGE}",
        title="Two workers with two budgets on one machine",
        columns=("budget, MiB", "ledger, MiB", "peak, MiB", "read in each sweep, MiB"),
    )
    for budget in budgets:
        notes = [note for note in notes_of(job.work / "notes") if note["budget_bytes"] == budget]
        last = max(notes, key=lambda note: note["sweeps"])
        peak = max(note["peak_bytes"] for note in notes)
        swept = last["bytes_read"] / last["sweeps"]
        sizes = (budget, last["ledger_bytes"], peak, swept)
        outcome.rows.append(tuple(f"{size / MIB:.1f}" for size in sizes))
        outcome.figures[str(budget)] = {**last, "peak_bytes": peak}
        outcome.verdicts.append(verdict(f"peak by the budget of {budget / MIB:.0f} MiB", peak / budget, 1.0))
    outcome.verdicts.append(verdict("answers that differ between the two", differ, 0))
    outcome.notes.append(
        f"Two jobs at the same time with one worker each, {num_rows} rows each, prompts of a few tokens. "
        "The peak is the growth of the worker's resident memory since before the model was loaded."
    )
    return outcome
