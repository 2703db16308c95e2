"""Answer a list of requests on a cluster, as `generate_many` answers it on one machine."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from ..errors import StreamError
from ..spec.options import LoadOptions, Workload
from ..uses.batching.requests import GenerationRequest, GenerationResult
from .generation_worker import GenerationWork, GenerationWorker
from .loading import MOST_ROWS, WorkerModel
from .rows import RowAnswer
from .workers import BLOCKS_AT_ONCE, Workers, block_rows, in_blocks, refuse_hidden_devices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REASON = re.compile(r"^(?:layerstream\.errors\.)?(\w+Error: .*)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickledRequests:
    """Rows with a whole request each; what comes back is its number and its answer."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that answers depend on."""
        return ("request",)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        """Do nothing: the requests are complete."""

    def check(self, columns: Sequence[str]) -> None:
        """Do nothing: the rows are made here."""

    def request(self, row: Mapping[str, Any]) -> GenerationRequest:
        """Return the request in a row."""
        request: GenerationRequest = pickle.loads(row["request"])
        return request

    def table(self, rows: pa.Table, answers: Sequence[RowAnswer]) -> pa.Table:
        """Return the numbers of `rows`, with what became of each."""
        pickled = pa.array([_pickled(answer) for answer in answers], pa.binary())
        return rows.select(["number"]).append_column("answer", pickled)


def generate_on_ray(
    requests: Sequence[GenerationRequest],
    *,
    model: str,
    options: LoadOptions,
    workers: Workers,
    max_rows: int | None = None,
    on_result: Callable[[GenerationResult], object],
) -> None:
    """Answer `requests` on the Ray that this process is connected to.

    Args:
        requests: with prompts as tokens, and without beams.
        model: a directory that every node has, or a Hub id.
        options: how to load it; the requests decide the workload.
        workers: what answers.
        max_rows: at most this many rows share a sweep on each device.
        on_result: called with each result; those of a block come together.

    Raises:
        BudgetTooSmallError: a node that was asked cannot hold the model.
        PlanError: the workers are given fewer accelerators than the options name.
        StreamError: a worker could not go on; the message says why.
    """
    workload = Workload(
        batch_size=min(max_rows or MOST_ROWS, MOST_ROWS, len(requests)),
        prompt_tokens=max(len(request.prompt) for request in requests),
        new_tokens=max(request.max_new_tokens for request in requests),
    )
    found = WorkerModel.of(model, replace(options, workload=workload))
    refuse_hidden_devices(found, workers)
    num_rows = block_rows(found, workers)
    work = GenerationWork(model=found, rows=PickledRequests(), most_waiting=num_rows * BLOCKS_AT_ONCE)
    rows = pa.table(
        {
            "number": pa.array(range(len(requests)), pa.int64()),
            "request": pa.array(map(pickle.dumps, requests), pa.binary()),
        }
    )
    answered = in_blocks(
        ray.data.from_arrow(rows),
        GenerationWorker,
        work,
        workers,
        num_rows=num_rows,
        blocks_at_once=BLOCKS_AT_ONCE,
    )
    with told_plainly():
        for block in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                on_result(_result(row["number"], requests[row["number"]], pickle.loads(row["answer"])))


def _pickled(answer: RowAnswer) -> bytes:
    try:
        return pickle.dumps(answer)
    except (pickle.PicklingError, TypeError, AttributeError):
        # an error of another library
        return pickle.dumps(RowAnswer(error=RuntimeError(f"{type(answer.error).__name__}: {answer.error}")))


def _result(number: int, request: GenerationRequest, answer: RowAnswer) -> GenerationResult:
    return GenerationResult(
        index=number,
        request=request,
        prompt_tokens=len(request.prompt),
        tokens=answer.tokens,
        text=answer.text,
        finish_reason=answer.finish_reason,
        seed=answer.seed,
        error=answer.error,
    )


@contextmanager
def told_plainly() -> Iterator[None]:
    """Raise what ended a worker without Ray's frames around it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        reason = _REASON.search(str(error))
        raise StreamError(f"a worker ended: {reason.group(1) if reason else error}") from error
