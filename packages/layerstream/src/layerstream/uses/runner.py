"""Run many requests on every device of a streamed model: the part that batching and scoring share.

The requests are split among the devices. Each device runs its share as tasks that share sweeps, and every
result is reported as soon as it is ready. What a task computes is up to the strategy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..engine.replica import Replica
from ..engine.tokenizer import load_tokenizer
from ..errors import UnsupportedModelError
from ..model import StreamedModel
from ..streaming.scheduler import Task, TaskResult


class Indexed(Protocol):
    """A request or a result, with its place among the requests."""

    @property
    def index(self) -> int:
        """The request's place, from 0."""


Request = TypeVar("Request", bound=Indexed)
Result = TypeVar("Result", bound=Indexed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBatch:
    """Tasks that one replica runs together.

    Attributes:
        tasks: what to run, in order of admission.
        on_task: called with each task's result when it finishes, while no task runs; may raise.
        capacity: the total weight that the running tasks may have; None admits all at once.
    """

    tasks: Sequence[Task]
    on_task: Callable[[TaskResult], None]
    capacity: float | None = None


@dataclass(slots=True)
class ResultCollector(Generic[Result]):
    """Collects the results of all devices and reports them, one call at a time.

    Attributes:
        on_result: called with each result.
        lock: held during every report; hold it to report progress too.
    """

    on_result: Callable[[Result], object]
    lock: threading.RLock = field(default_factory=threading.RLock)
    _results: dict[int, Result] = field(default_factory=dict, init=False)

    def add(self, result: Result, count: Callable[[], object]) -> None:
        """Keep a result and report it, then call `count` for the progress."""
        with self.lock:
            self._results[result.index] = result
            self.on_result(result)
            count()

    def in_order(self) -> list[Result]:
        """Return the results in the order of their requests."""
        return [self._results[index] for index in sorted(self._results)]


def run_tasks(
    streamed: StreamedModel,
    batches: Callable[[Replica], Iterable[TaskBatch]],
    *,
    is_regardless_of_memory: bool = False,
) -> None:
    """Run each replica's batches one after another, and all replicas at the same time.

    Args:
        streamed: an open model.
        batches: called with each replica; yields its batches.
        is_regardless_of_memory: a task that cannot fit the budget runs all the same.
    """

    def work(replica: Replica) -> None:
        for batch in batches(replica):
            replica.group.run(batch.tasks, capacity=batch.capacity, on_result=batch.on_task)

    with streamed.beyond_plan() if is_regardless_of_memory else nullcontext():
        streamed.run_on_devices(work)


def split_among_devices(
    requests: Sequence[Request],
    num_devices: int,
    *,
    tokens: Callable[[Request], int],
    stays_on_first: Callable[[Request], bool] = lambda _: False,
    longest_first: bool = False,
) -> list[list[Request]]:
    """Return each device's share, in the order of the requests, so that all devices get about as many tokens.

    Args:
        requests: all requests, in order.
        num_devices: the number of shares.
        tokens: returns how many tokens a request takes.
        stays_on_first: returns whether a request must run on the first device.
        longest_first: assign long requests first, so that each share has requests of similar length.
    """
    shares: list[list[Request]] = [[] for _ in range(num_devices)]
    totals = [0] * num_devices
    order = list(requests)
    if longest_first:
        order.sort(key=lambda request: (not stays_on_first(request), -tokens(request)))
    for request in order:
        device = 0 if stays_on_first(request) else totals.index(min(totals))
        shares[device].append(request)
        totals[device] += tokens(request)
    return [sorted(share, key=lambda request: request.index) for share in shares]


def error_of(task_result: TaskResult) -> Exception | None:
    """Return a task's error, or None if it has none.

    Raises:
        BaseException: the error, if it must not become a request's result, such as KeyboardInterrupt.
    """
    error = task_result.error
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


def tokenizer_for(
    streamed: StreamedModel, tokenizer: PreTrainedTokenizerBase | None, *, is_needed: bool
) -> PreTrainedTokenizerBase | None:
    """Return `tokenizer`, or the checkpoint's own if none was given and one is needed."""
    if tokenizer is not None or not is_needed:
        return tokenizer
    return load_tokenizer(streamed.plan.model_name, streamed.options)


def check_adapters(streamed: StreamedModel, names: Sequence[str | None]) -> None:
    """Refuse requests that name adapters which the model does not have.

    Args:
        streamed: the model.
        names: each request's adapter.

    Raises:
        PlanError: there is no such adapter; the message names the request.
        UnsupportedModelError: the model has an adapter of prompt learning.
    """
    if not isinstance(streamed.model, PreTrainedModel):
        raise UnsupportedModelError(
            "a model with an adapter of prompt learning answers one call at a time: while it generates, peft "
            "replaces methods of the model, which other tasks would meet. Call streamed.generate() for each "
            "request"
        )
    for index, name in enumerate(names):
        streamed.replicas[0].adapters.check(name, f"request {index}")


class ProgressClock:
    """Measures the time since it was created, and estimates the time that is left."""

    def __init__(self) -> None:
        """Start now."""
        self._start_s = perf_counter()

    def elapsed_and_eta(self, share_done: float, *, is_over: bool) -> tuple[float, float | None]:
        """Return the seconds so far, and the seconds left at this rate (None before anything is done)."""
        elapsed_s = perf_counter() - self._start_s
        if is_over:
            return elapsed_s, 0.0
        return elapsed_s, elapsed_s * (1 - share_done) / share_done if share_done > 0 else None


def ignore(_: object) -> None:
    """Do nothing; the default callback."""
