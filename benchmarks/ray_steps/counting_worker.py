"""A worker that notes in a folder which rows it has answered, and how full its sweeps were."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerstream.ray.generation_worker import GenerationWorker
from layerstream.ray.rows import RowAnswer

FOLDER = "LAYERSTREAM_BENCH_RAY"
"""The variable with the folder; Ray's processes inherit it."""

_SAMPLE_S = 0.002


class CountingWorker(GenerationWorker):
    """Answers rows as its base class does."""

    def __init__(self, work: Any) -> None:
        """Load the model."""
        super().__init__(work)
        self._notes = Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl"
        self._row_notes = self._notes.with_suffix(".rows")
        self._most_running = 0

    async def _answered(self, block: pa.Table) -> pa.Table:
        """Return the rows of a block that were not kept with their answers, and note them."""
        watching = asyncio.create_task(self._watch())
        try:
            answered = await super()._answered(block)
        finally:
            watching.cancel()
        assert self._service is not None
        status, report = self._service.status(), self._streamed.report()
        note = {
            "ids": block[block.column_names[0]].to_pylist(),
            "sweeps": status.sweeps,
            "generated_tokens": status.generated_tokens,
            "most_running": self._most_running,
            "bytes_read": report.bytes_read,
            "budget_bytes": report.budget_device_bytes,
            "ledger_bytes": report.ledger_device_bytes,
            "peak_bytes": report.peak_device_bytes,
        }
        with self._notes.open("a") as notes:
            notes.write(json.dumps(note) + "\n")
        return answered

    async def _answer(self, row: Mapping[str, Any]) -> RowAnswer:
        """Return a row's answer, and note the row."""
        answer = await super()._answer(row)
        with self._row_notes.open("a") as notes:
            notes.write(f"{next(iter(row.values()))}\n")
        return answer

    async def _watch(self) -> None:
        assert self._service is not None
        while True:
            self._most_running = max(self._most_running, self._service.status().running)
            await asyncio.sleep(_SAMPLE_S)
