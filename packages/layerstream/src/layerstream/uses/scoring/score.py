"""Score many requests in as few sweeps as memory allows.

Planning decides which requests share a sweep; each forward of a request is one task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...architecture.last_positions import LastPositions, backbone
from ...architecture.shared_prefix import why_not_shared
from ...engine.replica import Replica
from ...errors import ScoreError, UnsupportedModelError
from ...model import StreamedModel
from ...planning.scoring_sweeps import plan_scoring_sweeps
from ...spec.plans import Residency
from ...spec.request_plans import ScoringPlan
from ...streaming.scheduler import Task, TaskResult
from ..runner import (
    ResultCollector,
    TaskBatch,
    check_adapters,
    error_of,
    ignore,
    run_tasks,
    split_among_devices,
    tokenizer_for,
)
from .head import Head, ScoringHead
from .progress import ScoringCounter, ScoringProgress
from .requests import ScoringRequest, ScoringTokenizer, TokenizedScoring
from .results import ScoringResult
from .scorers import Call, HeadOutputs, LogProbabilities, Scorer


def score(
    streamed: StreamedModel,
    requests: Sequence[ScoringRequest],
    *,
    head: Head | None = None,
    max_rows: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_result: Callable[[ScoringResult], object] | None = None,
    on_progress: Callable[[ScoringProgress], object] | None = None,
) -> list[ScoringResult]:
    """Score the suffixes of many prefixes. One sweep serves as many requests as memory holds.

    A prefix runs once. Its suffixes read its keys and values, which no suffix copies or keeps. Every number
    equals, bit for bit, what transformers returns in two steps: the prefix on an empty cache, then each
    suffix alone on a copy of that cache. If the model's cache cannot be shared (a recurrent state), each
    suffix runs with its prefix as one text, in the same sweep, and equals transformers' forward of that text.
    With several devices, each one gets a share of the requests.

    Text is tokenized as `uses.scoring.requests` describes: special tokens once, in front of the prefix. An
    empty prefix is the model's BOS token.

    Args:
        streamed: an open model.
        requests: pairs of a prefix and its suffixes, each text or token ids; the name of an adapter may
            follow.
        head: score by this head's outputs for each suffix's last token, not by log-probabilities: a module
            that takes the last hidden state (1, hidden size), or a safetensors file with its weight. The
            hidden state is cast to the head's dtype.
        max_rows: at most this many requests share a sweep, regardless of memory; None lets memory decide.
        tokenizer: for text; by default the checkpoint's own if a request has text.
        on_result: called with each result as soon as it is ready; may raise. The model cannot run during the
            call. Runs in the calling thread; with several devices also in the other devices' threads, one
            call at a time.
        on_progress: called after every streamed unit and every forward of the first device; must be quick. An
            exception that it raises ends everything.

    Returns:
        One result per request, in their order. A request that failed while it ran has its `error`; the others
        are not affected.

    Raises:
        PlanError: a request, the head or `max_rows` is invalid; the message names the request. Nothing ran.
        CheckpointError: the head's file cannot be used, or a request has text and there is no tokenizer.
        UnsupportedModelError: there is a head, but the model has no backbone apart from its own head.
        StreamError: called inside a forward or a callback of the same model.
        StreamClosedError: the model is closed, or was closed meanwhile.
    """
    check_adapters(streamed, ())
    is_shared = why_not_shared(streamed.model) is None
    all_last_positions = [
        LastPositions(replica.model, device_is_host=streamed.plan.device_is_host)
        for replica in streamed.replicas
    ]
    scorers = [
        _scorer(replica.model, last_positions, head, is_shared)
        for replica, last_positions in zip(streamed.replicas, all_last_positions, strict=True)
    ]
    shares = _shares(streamed, requests, scorers[0], tokenizer, has_head=head is not None)
    plans = [_plan(streamed, share, scorers[0], max_rows) for share in shares]
    counter = ScoringCounter(
        total=len(requests),
        sweep_tokens=[
            _tokens(scorers[0], [shares[0][place] for place in sweep]) for sweep in plans[0].sweeps
        ],
        units=sum(unit.residency is not Residency.DEVICE for unit in streamed.plan.units),
        on_progress=on_progress or ignore,
    )
    collector = ResultCollector(on_result or ignore)
    runs = [
        _ShareRun(replica, share, scorer, plan, counter, collector, is_shared)
        for replica, share, scorer, plan in zip(streamed.replicas, shares, scorers, plans, strict=True)
    ]
    with ExitStack() as attached:
        for last_positions in all_last_positions:
            attached.enter_context(last_positions.attached())
        attached.callback(streamed.timeline.subscribe(counter.observe))
        run_tasks(
            streamed,
            lambda replica: runs[replica.index].batches(),
            is_regardless_of_memory=max_rows is not None,
        )
    return collector.in_order()


def plan_scores(
    streamed: StreamedModel,
    requests: Sequence[ScoringRequest],
    *,
    head: Head | None = None,
    max_rows: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ScoringPlan:
    """Return which requests would share a sweep in `score`, and the heaviest sweep's memory; runs nothing.

    With several devices, this is the plan for the first one's share.

    Raises:
        PlanError: a request, the head or `max_rows` is invalid.
    """
    check_adapters(streamed, ())
    model = streamed.model
    last_positions = LastPositions(model, device_is_host=streamed.plan.device_is_host)
    scorer = _scorer(model, last_positions, head, why_not_shared(model) is None)
    shares = _shares(streamed, requests, scorer, tokenizer, has_head=head is not None)
    return _plan(streamed, shares[0], scorer, max_rows)


def _scorer(
    model: PreTrainedModel, last_positions: LastPositions, head: Head | None, is_shared: bool
) -> Scorer:
    if head is None:
        return LogProbabilities(model, last_positions, is_shared=is_shared)
    if backbone(model) is model:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no backbone apart from its head: score by log-probabilities"
        )
    own = model.get_output_embeddings()
    width = own.weight.shape[-1] if own is not None else model.config.get_text_config().hidden_size
    return HeadOutputs(
        model,
        last_positions,
        ScoringHead(head, width=width, dtype=model.dtype, device=model.device),
        is_shared=is_shared,
    )


def _shares(
    streamed: StreamedModel,
    requests: Sequence[ScoringRequest],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    has_head: bool,
) -> list[list[TokenizedScoring]]:
    tokenizer = tokenizer_for(streamed, tokenizer, is_needed=any(map(_has_text, requests)))
    vocab_size = streamed.model.get_input_embeddings().weight.shape[0]
    reader = ScoringTokenizer(streamed.model.config, vocab_size, tokenizer, feeds_last=has_head)
    tokenized = [reader.read(index, request) for index, request in enumerate(requests)]
    check_adapters(streamed, [request.adapter for request in tokenized])
    return split_among_devices(
        tokenized, len(streamed.replicas), tokens=lambda request: _tokens(scorer, [request])
    )


def _tokens(scorer: Scorer, requests: Iterable[TokenizedScoring]) -> int:
    return sum(sum(scorer.size(request).forwards) for request in requests)


def _has_text(request: Any) -> bool:
    """Return whether there is text anywhere in a request, which may be malformed."""
    if isinstance(request, str) or not isinstance(request, Sequence):
        return False
    texts = request[:2]
    parts = [[part] if isinstance(part, str) or not isinstance(part, Sequence) else part for part in texts]
    return any(isinstance(item, str) for part in parts for item in part)


def _plan(
    streamed: StreamedModel, share: Sequence[TokenizedScoring], scorer: Scorer, max_rows: int | None
) -> ScoringPlan:
    sizes = [scorer.size(request) for request in share]
    return plan_scoring_sweeps(
        plan=streamed.plan, profile=streamed.profile, requests=sizes, max_rows=max_rows
    )


@dataclass(slots=True)
class _ShareRun:
    """One device's share of a call of `score`: every forward is a task, and every sweep a batch of tasks.

    Attributes:
        counter: follows the first device through its sweeps, and counts the finished requests of all devices.
    """

    replica: Replica
    share: list[TokenizedScoring]
    scorer: Scorer
    plan: ScoringPlan
    counter: ScoringCounter
    collector: ResultCollector[ScoringResult]
    is_shared: bool

    @property
    def is_first(self) -> bool:
        """Whether this is the first device's share."""
        return self.replica.index == 0

    def batches(self) -> Iterator[TaskBatch]:
        """Yield the tasks of one sweep after another."""
        for sweep in self.plan.sweeps:
            yield self._start_sweep(sweep)

    def _start_sweep(self, sweep: Sequence[int]) -> TaskBatch:
        calls = {place: self.scorer.calls(self.share[place]) for place in sweep}
        owners = [place for place in sweep for _ in calls[place]]
        num_calls = {place: len(calls[place]) for place in sweep}
        finished: dict[int, list[TaskResult]] = {place: [] for place in sweep}
        if self.is_first:
            self.counter.start_sweep(len(owners))

        def on_task(task_result: TaskResult) -> None:
            place = owners[task_result.number]
            finished[place].append(task_result)
            if self.is_first:
                self.counter.end_task()
            if len(finished[place]) == num_calls[place]:
                self.collector.add(self._result(place, finished.pop(place)), self.counter.end_request)

        tasks = [Task(call=partial(self._run, place, call)) for place in sweep for call in calls[place]]
        return TaskBatch(tasks=tasks, on_task=on_task)

    def _run(self, place: int, call: Call) -> Any:
        self.replica.adapters.choose(self.share[place].adapter)
        return call()

    def _result(self, place: int, task_results: list[TaskResult]) -> ScoringResult:
        request = self.share[place]
        task_results = sorted(task_results, key=lambda task_result: task_result.number)
        error = next((error for error in map(error_of, task_results) if error is not None), None)
        if error is not None:
            return ScoringResult(index=request.index, error=error, is_shared=self.is_shared)
        try:
            scores = self.scorer.read(request, [task_result.value for task_result in task_results])
        except ScoreError as score_error:
            return ScoringResult(index=request.index, error=score_error, is_shared=self.is_shared)
        return ScoringResult(index=request.index, scores=scores, is_shared=self.is_shared)
