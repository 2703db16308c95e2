"""The worker that scores rows: one model, and one thread that scores whatever rows wait, all together.

Rows that come while a sweep runs are scored in the next one, whichever block they are from.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa

from ..errors import LayerstreamError, PlanError, StreamError
from ..model import StreamedModel
from ..uses.scoring.requests import ScoringTokenizer, TokenizedScoring
from ..uses.scoring.results import ScoringResult
from ..uses.scoring.score import plan_scores, score
from .kept_rows import KeptFolder, KeptRows
from .loading import WorkerModel
from .rows import ScoreColumns

_TRIES = 3
"""Attempts for a row before a read error ends the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringWork:
    """What a worker needs to score rows.

    Attributes:
        model: what scores.
        columns: where prefixes and suffixes are.
        head: a safetensors file, as every node knows it; None scores by log-probabilities.
        kept: where finished rows are kept until they are written; None keeps none.
    """

    model: WorkerModel
    columns: ScoreColumns
    head: str | Path | None = None
    kept: KeptFolder | None = None


class ScoringWorker:
    """Scores blocks of rows; Ray Data calls it with one block at a time, and several times at once."""

    def __init__(self, work: ScoringWork) -> None:
        """Load the model. What goes wrong is told by the first call, which Ray hands on to the caller."""
        self._columns = work.columns
        self._refusal: LayerstreamError | None = None
        self._queue: ScoringQueue | None = None
        try:
            streamed, tokenizer = work.model.load()
            # finds out whether the head fits the model
            plan_scores(streamed, [], head=work.head)
        except LayerstreamError as error:
            self._refusal = error
            return
        self._tokenizer = ScoringTokenizer(
            streamed.model.config,
            streamed.model.get_input_embeddings().weight.shape[0],
            tokenizer,
            feeds_last=work.head is not None,
        )
        self._queue = ScoringQueue(streamed, work.head)
        settings = (work.model.result_settings, work.columns, work.head)
        self._kept = KeptRows(work.kept, settings, work.columns.inputs)

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows of a block with their scores.

        Raises:
            PlanError: the block lacks a column, or has one of the results; nothing of it was scored.
            LayerstreamError: the model cannot be loaded on this machine, or its weights cannot be moved.
        """
        if self._refusal is not None:
            # calls run at once, and each would add its frames to the same error
            raise self._refusal.with_traceback(None)
        if not block.num_rows:
            return self._columns.table(block, [])
        self._columns.check(block.column_names)
        return await self._kept.completed(block, self._scored)

    async def _scored(self, block: pa.Table) -> pa.Table:
        results: Sequence[ScoringResult] = await asyncio.gather(
            *(self._score(number, row) for number, row in enumerate(block.to_pylist()))
        )
        return self._columns.table(block, results)

    async def _score(self, number: int, row: Mapping[str, Any]) -> ScoringResult:
        assert self._queue is not None
        try:
            request = self._tokenizer.read(number, self._columns.request(row))
        except PlanError as error:
            return ScoringResult(index=number, error=error)
        for _ in range(_TRIES):
            result = await asyncio.wrap_future(self._queue.put(request))
            if not isinstance(result.error, StreamError | MemoryError):
                return result
        assert result.error is not None
        raise result.error

    def close(self) -> None:
        """End the thread and free the model; actors just end."""
        if self._queue is not None:
            self._queue.close()


class ScoringQueue:
    """Scores requests in the order in which they come, all that wait at once; owns the model."""

    def __init__(self, streamed: StreamedModel, head: str | Path | None) -> None:
        """Start to score."""
        self._streamed, self._head = streamed, head
        self._waiting: SimpleQueue[tuple[TokenizedScoring, Future[ScoringResult]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="layerstream-scoring", daemon=True)
        self._thread.start()

    def put(self, request: TokenizedScoring) -> Future[ScoringResult]:
        """Put a request into the queue; its result has an error if it failed."""
        scored: Future[ScoringResult] = Future()
        self._waiting.put((request, scored))
        return scored

    def close(self) -> None:
        """Score what waits, end the thread and free the model."""
        self._waiting.put(None)
        self._thread.join()
        self._streamed.close()

    def _run(self) -> None:
        is_open = True
        while is_open:
            entries = [self._waiting.get(), *self._others()]
            is_open = None not in entries
            self._score([entry for entry in entries if entry is not None])

    def _others(self) -> list[tuple[TokenizedScoring, Future[ScoringResult]] | None]:
        others = []
        while True:
            try:
                others.append(self._waiting.get_nowait())
            except Empty:
                return others

    def _score(self, entries: Sequence[tuple[TokenizedScoring, Future[ScoringResult]]]) -> None:
        def tell(result: ScoringResult) -> None:
            request, scored = entries[result.index]
            scored.set_result(replace(result, index=request.index))

        requests = [(request.prefix, request.suffixes, request.adapter) for request, _ in entries]
        try:
            score(self._streamed, requests, head=self._head, on_result=tell)
        except Exception as error:  # noqa: BLE001 - handed on to every request without a result
            for request, scored in entries:
                if not scored.done():
                    scored.set_result(ScoringResult(index=request.index, error=error))
