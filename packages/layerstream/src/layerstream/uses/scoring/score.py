"""Score many requests in as few sweeps as memory allows.

Layer: uses. Lets planning form sweeps, hands each sweep to the sweep group, and puts the results together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...architecture.last_positions import LastPositions, backbone
from ...architecture.shared_prefix import why_not_shared
from ...engine.tokenizer import load_tokenizer
from ...errors import ScoreError, UnsupportedModelError
from ...model import StreamedModel
from ...planning.scoring_sweeps import ScoringPlan, plan_scoring_sweeps
from ...spec.plans import Residency
from ...streaming.scheduler import TaskResult
from ...streaming.sweep_group import SweepGroup
from .head import Head, ScoringHead
from .progress import ProgressCounter, ScoreProgress
from .requests import ScoringRequest, ScoringTokenizer, TokenizedScoring
from .results import ScoringResult
from .scorers import HeadOutputs, LogProbabilities, Scorer


def score(
    streamed: StreamedModel,
    requests: Sequence[ScoringRequest],
    *,
    head: Head | None = None,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_result: Callable[[ScoringResult], object] | None = None,
    on_progress: Callable[[ScoreProgress], object] | None = None,
) -> list[ScoringResult]:
    """Score the suffixes of many prefixes, reading the streamed weights once for as many requests as memory holds.

    A prefix runs once; its suffixes read its keys and values, which no suffix copies or keeps. All requests of a sweep share one
    sweep. Every number equals, bit for bit, what transformers gives in two steps: the prefix with an empty cache, then each
    suffix alone on a copy of that cache. Several devices each take a share of the requests and task on one reading.
    Where a model's cache cannot be shared (a recurrent state), each suffix runs with its
    prefix as one text, all in the same sweep, and equals transformers' forward of that text.

    Text is tokenized as in `requests`: special tokens once, in front of the prefix. An empty prefix is the model's BOS token.

    Args:
        streamed: an open model.
        requests: pairs of a prefix and its suffixes, each text or token ids.
        head: score by this head's outputs on the last hidden state of each suffix' last token, instead of by log-probabilities:
            a module that takes (1, hidden size), or a safetensors file with its weight. The hidden state is cast to its dtype.
        batches: form so many sweeps, whatever memory says; None forms as few as the plan leaves room for.
        tokenizer: for texts; the checkpoint's own is loaded where there are any.
        on_result: told of each request's result as it comes, where the model cannot run then; may raise. In the calling thread;
            with several devices in the threads of the others too, one call at a time.
        on_progress: told after every moved unit and every forward (of the first device); must be quick. What it raises ends
            everything.

    Returns:
        One result a request, in their order. A request that failed while it ran has its `error`; the others are not touched.

    Raises:
        PlanError: a request, the head or `batches` makes no sense; says which one. Nothing has run then.
        CheckpointError: the head's file cannot be used, or there is text and no tokenizer.
        UnsupportedModelError: a head was given for a model without a backbone of its own.
        StreamError: called inside a forward or a callback of the same model.
        StreamClosedError: the model is closed, or was meanwhile.
    """
    is_shared = why_not_shared(streamed.model) is None
    last_positions = [LastPositions(replica) for replica in streamed.replicas]
    scorers = [
        _scorer(replica, last_positions, head, is_shared)
        for replica, last_positions in zip(streamed.replicas, last_positions, strict=True)
    ]
    prepared = _prepare(streamed, requests, tokenizer, has_head=head is not None)
    shares = _deal(prepared, scorers[0], len(scorers))
    plans = [_plan(streamed, share, scorers[0], batches) for share in shares]
    counter = _counter(streamed, plans[0], shares[0], scorers[0], on_progress, total=len(prepared))
    common = _Common(is_shared=is_shared, on_result=on_result or _nobody, counter=counter)

    def work(_: PreTrainedModel, index: int) -> None:
        run = _Run(
            streamed.groups[index], shares[index], scorers[index], plans[index], common, is_counted=index == 0
        )
        with last_positions[index].attached():
            run.all_sweeps()

    unsubscribe = streamed.timeline.subscribe(counter.observe)
    try:
        streamed.run_on_devices(work)
    finally:
        unsubscribe()
    return [common.results[index] for index in range(len(prepared))]


def plan_scores(
    streamed: StreamedModel,
    requests: Sequence[ScoringRequest],
    *,
    head: Head | None = None,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ScoringPlan:
    """Return how many sweeps `score` would take and the memory of the heaviest; nothing is run.

    With several devices: for the first one's share.

    Raises:
        PlanError: a request, the head or `batches` makes no sense.
    """
    model = streamed.model
    scorer = _scorer(model, LastPositions(model), head, why_not_shared(model) is None)
    prepared = _prepare(streamed, requests, tokenizer, has_head=head is not None)
    return _plan(streamed, _deal(prepared, scorer, len(streamed.replicas))[0], scorer, batches)


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


def _prepare(
    streamed: StreamedModel,
    requests: Sequence[ScoringRequest],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    has_head: bool,
) -> list[TokenizedScoring]:
    if tokenizer is None and any(_has_text(request) for request in requests):
        tokenizer = load_tokenizer(streamed.plan.model_name)
    vocab_size = streamed.model.get_input_embeddings().weight.shape[0]
    reader = ScoringTokenizer(streamed.model.config, vocab_size, tokenizer, feeds_last=has_head)
    return [reader.read(index, request) for index, request in enumerate(requests)]


def _has_text(request: Any) -> bool:
    if isinstance(request, str) or not isinstance(request, Sequence):
        return False
    flat = [
        each
        for part in request
        for each in ([part] if isinstance(part, str) or not isinstance(part, Sequence) else part)
    ]
    return any(isinstance(each, str) for each in flat)


def _deal(
    prepared: Sequence[TokenizedScoring], scorer: Scorer, num_devices: int
) -> list[list[TokenizedScoring]]:
    """Return each device's share of the requests, in their order, so that all have about as many tokens."""
    shares: list[list[TokenizedScoring]] = [[] for _ in range(num_devices)]
    tokens = [0] * num_devices
    for request in prepared:
        index = tokens.index(min(tokens))
        shares[index].append(request)
        tokens[index] += sum(scorer.size(request).forwards)
    return shares


def _counter(
    streamed: StreamedModel,
    plan: ScoringPlan,
    share: Sequence[TokenizedScoring],
    scorer: Scorer,
    on_progress: Callable[[ScoreProgress], object] | None,
    *,
    total: int,
) -> ProgressCounter:
    weights = [sum(sum(scorer.size(share[place]).forwards) for place in sweep) for sweep in plan.sweeps]
    moved = sum(unit.residency is not Residency.DEVICE for unit in streamed.plan.units)
    return ProgressCounter(total=total, weights=weights, units=moved, tell=on_progress or _nobody)


def _plan(
    streamed: StreamedModel, prepared: Sequence[TokenizedScoring], scorer: Scorer, batches: int | None
) -> ScoringPlan:
    sizes = [scorer.size(request) for request in prepared]
    return plan_scoring_sweeps(plan=streamed.plan, profile=streamed.profile, requests=sizes, batches=batches)


@dataclass(slots=True, kw_only=True)
class _Common:
    """What all devices share in one call of `score`: who is told, one at a time, and what has come.

    Attributes:
        is_shared: whether suffixes read the cache of their prefix.
        on_result: told of each result.
        counter: follows the first device through its sweeps, and counts every device's requests.
        results: those that have come, by the request's index.
        lock: held while anybody is told.
    """

    is_shared: bool
    on_result: Callable[[ScoringResult], object]
    counter: ProgressCounter
    results: dict[int, ScoringResult] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def tell(self, result: ScoringResult) -> None:
        """Pass one result on."""
        with self.lock:
            self.results[result.index] = result
            self.on_result(result)
            self.counter.end_request()


@dataclass(slots=True)
class _Run:
    """One device's share of a call of `score`."""

    group: SweepGroup
    prepared: list[TokenizedScoring]
    scorer: Scorer
    plan: ScoringPlan
    common: _Common
    is_counted: bool

    def all_sweeps(self) -> None:
        """Let one sweep after another task."""
        for sweep in self.plan.sweeps:
            self._one_sweep(sweep)

    def _one_sweep(self, sweep: Sequence[int]) -> None:
        parties = {place: self.scorer.tasks(self.prepared[place]) for place in sweep}
        owners = [place for place, tasks in parties.items() for _ in tasks]
        arrived: dict[int, list[TaskResult]] = {place: [] for place in sweep}
        if self.is_counted:
            self.common.counter.start_sweep(len(owners))

        def hear(task_result: TaskResult) -> None:
            place = owners[task_result.number]
            arrived[place].append(task_result)
            if self.is_counted:
                self.common.counter.end_task()
            if len(arrived[place]) == len(parties[place]):
                self.common.tell(self._result(place, arrived.pop(place)))

        self.group.run([task for tasks in parties.values() for task in tasks], on_result=hear)

    def _result(self, place: int, task_results: list[TaskResult]) -> ScoringResult:
        index, is_shared = self.prepared[place].index, self.common.is_shared
        task_results = sorted(task_results, key=lambda task_result: task_result.number)
        failed = next(
            (task_result.error for task_result in task_results if task_result.error is not None), None
        )
        if failed is not None and not isinstance(failed, Exception):
            raise failed
        if failed is not None:
            return ScoringResult(index=index, error=failed, is_shared=is_shared)
        try:
            scores = self.scorer.read(
                self.prepared[place], [task_result.value for task_result in task_results]
            )
        except ScoreError as error:
            return ScoringResult(index=index, error=error, is_shared=is_shared)
        return ScoringResult(index=index, scores=scores, is_shared=is_shared)


def _nobody(_: object) -> None:
    """Hear of something and do nothing."""
