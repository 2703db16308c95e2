"""The worker that answers rows: one model, one service, and rows of several blocks in the same sweeps.

Ray Data makes one of it for each actor. Calls for several blocks run at the same time: each puts its rows
into the service's queue, so the last rows of one block share sweeps with the first rows of the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from ..errors import LayerstreamError, StreamError
from ..uses.batching.requests import GenerationRequest, GenerationResult
from ..uses.serving.events import AnswerEnded, AnswerEvent
from ..uses.serving.service import GenerationService
from .kept_rows import KeptFolder, KeptRows
from .loading import WorkerModel
from .rows import RowAnswer, RowFormat

_TRIES = 3
"""Attempts for a row before a read error ends the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationWork:
    """What a worker needs to answer rows.

    Attributes:
        model: what answers.
        rows: how prompts are read and answers are put into columns.
        most_waiting: how many rows a worker may hold at the same time.
        kept: where finished rows are kept until they are written; None keeps none.
    """

    model: WorkerModel
    rows: RowFormat
    most_waiting: int
    kept: KeptFolder | None = None


class GenerationWorker:
    """Answers blocks of rows; Ray Data calls it with one block at a time, and several times at once."""

    def __init__(self, work: GenerationWork) -> None:
        """Load the model. What goes wrong is told by the first call, which Ray hands on to the caller."""
        self._rows = work.rows
        self._refusal: LayerstreamError | None = None
        self._service: GenerationService | None = None
        try:
            self._streamed, tokenizer = work.model.load()
            self._service = GenerationService(
                self._streamed, tokenizer=tokenizer, most_waiting=work.most_waiting
            )
        except LayerstreamError as error:
            # an actor that dies while it starts is started again, and fails again
            self._refusal = error
            return
        vocab_size = self._streamed.model.get_input_embeddings().weight.shape[0]
        self._rows.prepare(self._service.tokenizer, vocab_size)
        self._kept = KeptRows(work.kept, (work.model.result_settings, work.rows), work.rows.inputs)

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows of a block with their answers.

        Raises:
            PlanError: the block lacks the column of the prompts, or has one of the results; nothing was
                generated for it.
            LayerstreamError: the model cannot be loaded on this machine, or its weights cannot be moved.
        """
        if self._refusal is not None:
            # calls run at once, and each would add its frames to the same error
            raise self._refusal.with_traceback(None)
        if not block.num_rows:
            return self._rows.table(block, [])
        self._rows.check(block.column_names)
        return await self._kept.completed(block, self._answered)

    async def _answered(self, block: pa.Table) -> pa.Table:
        answers: Sequence[RowAnswer] = await asyncio.gather(*(self._answer(row) for row in block.to_pylist()))
        return self._rows.table(block, answers)

    async def _answer(self, row: Mapping[str, Any]) -> RowAnswer:
        """Return the answer to a row, or why there is none.

        Raises:
            StreamError, MemoryError: the row is not the cause of the error.
        """
        try:
            request = self._rows.request(row)
            result = await self._generate(request)
        except ValueError as error:  # every PlanError is one; so are wrong values that a row holds
            return RowAnswer(error=error)
        if result.error is not None:
            return RowAnswer(error=result.error)
        return RowAnswer(
            text=self._text(result),
            prompt_tokens=result.prompt_tokens,
            tokens=result.tokens,
            finish_reason=result.finish_reason,
            seed=result.seed,
        )

    async def _generate(self, request: GenerationRequest) -> GenerationResult:
        assert self._service is not None
        for _ in range(_TRIES):
            ended: Future[GenerationResult] = Future()
            self._service.submit(request, partial(_listen, ended))
            result = await asyncio.wrap_future(ended)
            if not isinstance(result.error, StreamError | MemoryError):
                break
            if self._streamed.is_closed:
                raise result.error
        else:
            assert result.error is not None
            raise result.error
        return result

    def _text(self, result: GenerationResult) -> str:
        """Return an answer as `generate_many` does, with the stop text that ended it."""
        assert self._service is not None
        return str(self._service.tokenizer.decode(result.tokens, skip_special_tokens=True))

    def close(self) -> None:
        """End the service and free the model; actors just end."""
        if self._service is not None:
            self._service.close()
            self._streamed.close()


def _listen(ended: Future[GenerationResult], event: AnswerEvent) -> None:
    if isinstance(event, AnswerEnded):
        ended.set_result(event.result)
