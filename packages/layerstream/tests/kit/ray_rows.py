"""Rows, workers that wait at a gate, and a driver to kill, for tests on a local Ray.

Test kit. Run as a program, it is the driver: it answers the rows of a parquet file on a Ray that is there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

import layerstream as ls
import layerstream.ray.verbs as verbs
from layerstream.ray.generation_worker import GenerationWorker
from layerstream.ray.rows import RowAnswer

NEW_TOKENS = 6
PROMPT_TOKENS = 32
BLOCK_ROWS = 4
SETTINGS: dict[str, Any] = {
    "prompt": "text",
    "budget": "min",
    "max_new_tokens": NEW_TOKENS,
    "prompt_tokens": PROMPT_TOKENS,
    "rows_per_block": BLOCK_ROWS,
}


def write_rows(path: Path, num_rows: int) -> dict[int, str]:
    """Write rows with an `id` and a `text`, of different lengths, and return the texts by id."""
    texts = {number: f"{number}:" + "ab " * (number % 5) for number in range(num_rows)}
    ids, prompts = list(texts), list(texts.values())
    pq.write_table(pa.table({"id": ids, "text": prompts}), path)
    return texts


def plain_answers(model: Path, texts: dict[int, str]) -> dict[int, list[int]]:
    """Return the tokens of each answer as `generate_many` gives them on this machine, by id."""
    workload = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    with ls.load(model, budget="min", workload=workload) as streamed:
        requests = [ls.GenerationRequest(prompt=text, max_new_tokens=NEW_TOKENS) for text in texts.values()]
        results = ls.generate_many(streamed, requests, packed=False)
    return {number: list(result.tokens) for number, result in zip(texts, results, strict=True)}


class GatedWorker(GenerationWorker):
    """Answers the first rows at once, and the others when the gate, a file beside the model, is there.

    Attributes:
        model: the model's folder; a test sets it up with `.gate` in the name of the file beside it.
    """

    def __init__(self, work: Any) -> None:
        super().__init__(work)
        self._gate = gate_of(Path(work.model.name))

    async def __call__(self, block: pa.Table) -> pa.Table:
        while min(block["id"].to_pylist()) >= 2 * BLOCK_ROWS and not self._gate.exists():
            await asyncio.sleep(0.01)
        return await super().__call__(block)


def gate_of(model: Path) -> Path:
    """Return the file that opens the gate."""
    return model.with_name(model.name + ".gate")


class NotingWorker(GenerationWorker):
    """Writes the `id` of each row that it answers into a file beside the model."""

    def __init__(self, work: Any) -> None:
        super().__init__(work)
        self._notes = notes_of(Path(work.model.name))

    async def _answer(self, row: Mapping[str, Any]) -> RowAnswer:
        with self._notes.open("a") as notes:
            notes.write(f"{row['id']}\n")
        return await super()._answer(row)


def notes_of(model: Path) -> Path:
    """Return the file with the rows that were answered."""
    return model.with_name(model.name + ".answered")


def answering_processes() -> list[psutil.Process]:
    """Return the processes of this machine in which workers of this test's Ray run."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if "GatedWorker" in _name(process)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def answer_gated(model: Path, rows: Path, answers: Path, progress: Path) -> None:
    """Answer the rows into `answers`, and have those that are written recorded in `progress`."""
    verbs.GenerationWorker = GatedWorker
    verbs.generate(
        ray.data.read_parquet(str(rows)),
        model=model,
        id_column="id",
        progress_dir=progress,
        **SETTINGS,
    ).write_parquet(str(answers))


if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    answer_gated(*map(Path, sys.argv[2:]))
