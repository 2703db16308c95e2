"""Score many questions in as few sweeps as memory allows.

Layer: uses. Lets planning form waves, hands each wave to the sweep group, and puts the results together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...architecture.shared_prefix import why_not_shared
from ...architecture.last_positions import Tail, backbone
from ...spec.plans import Residency
from ...errors import ScoreError, UnsupportedModelError
from ...model import StreamedModel
from ...planning.scoring_sweeps import WavePlan, plan_waves
from ...streaming.scheduler import Arrival
from ...streaming.sweep_group import SweepGroup
from ...engine.tokenizer import load_tokenizer
from .head import Head, ScoringHead
from .progress import ProgressCounter, ScoreProgress
from .requests import PreparedQuestion, Question, QuestionReader
from .results import QuestionResult
from .scorers import HeadOutputs, LogProbabilities, Scorer


def score(
    streamed: StreamedModel,
    questions: Sequence[Question],
    *,
    head: Head | None = None,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_result: Callable[[QuestionResult], object] | None = None,
    on_progress: Callable[[ScoreProgress], object] | None = None,
) -> list[QuestionResult]:
    """Score the suffixes of many prefixes, reading the streamed weights once for as many questions as memory holds.

    A prefix runs once; its suffixes read its keys and values, which no suffix copies or keeps. All questions of a wave share one
    sweep. Every number equals, bit for bit, what transformers gives in two steps: the prefix with an empty cache, then each
    suffix alone on a copy of that cache. Several devices each take a share of the questions and ride on one reading.
    Where a model's cache cannot be shared (a recurrent state), each suffix runs with its
    prefix as one text, all in the same sweep, and equals transformers' forward of that text.

    Text is tokenized as in `questions`: special tokens once, in front of the prefix. An empty prefix is the model's BOS token.

    Args:
        streamed: an open model.
        questions: pairs of a prefix and its suffixes, each text or token ids.
        head: score by this head's outputs on the last hidden state of each suffix' last token, instead of by log-probabilities:
            a module that takes (1, hidden size), or a safetensors file with its weight. The hidden state is cast to its dtype.
        batches: form so many waves, whatever memory says; None forms as few as the plan leaves room for.
        tokenizer: for texts; the checkpoint's own is loaded where there are any.
        on_result: told of each question's result as it comes, where the model cannot run then; may raise. In the calling thread;
            with several devices in the threads of the others too, one call at a time.
        on_progress: told after every moved unit and every forward (of the first device); must be quick. What it raises ends
            everything.

    Returns:
        One result a question, in their order. A question that failed while it ran has its `error`; the others are not touched.

    Raises:
        PlanError: a question, the head or `batches` makes no sense; says which one. Nothing has run then.
        CheckpointError: the head's file cannot be used, or there is text and no tokenizer.
        UnsupportedModelError: a head was given for a model without a backbone of its own.
        StreamError: called inside a forward or a callback of the same model.
        StreamClosedError: the model is closed, or was meanwhile.
    """
    is_shared = why_not_shared(streamed.model) is None
    tails = [Tail(replica) for replica in streamed.replicas]
    scorers = [_scorer(replica, tail, head, is_shared) for replica, tail in zip(streamed.replicas, tails, strict=True)]
    prepared = _prepare(streamed, questions, tokenizer, has_head=head is not None)
    shares = _deal(prepared, scorers[0], len(scorers))
    plans = [_plan(streamed, share, scorers[0], batches) for share in shares]
    counter = _counter(streamed, plans[0], shares[0], scorers[0], on_progress, total=len(prepared))
    common = _Common(is_shared=is_shared, on_result=on_result or _nobody, counter=counter)

    def work(_: PreTrainedModel, lane: int) -> None:
        run = _Run(streamed.groups[lane], shares[lane], scorers[lane], plans[lane], common, is_counted=lane == 0)
        with tails[lane].attached():
            run.all_waves()

    unsubscribe = streamed.timeline.subscribe(counter.observe)
    try:
        streamed.run_on_devices(work)
    finally:
        unsubscribe()
    return [common.results[index] for index in range(len(prepared))]


def plan_scores(
    streamed: StreamedModel,
    questions: Sequence[Question],
    *,
    head: Head | None = None,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> WavePlan:
    """Return how many sweeps `score` would take and the memory of the heaviest; nothing is run.

    With several devices: for the first one's share.

    Raises:
        PlanError: a question, the head or `batches` makes no sense.
    """
    model = streamed.model
    scorer = _scorer(model, Tail(model), head, why_not_shared(model) is None)
    prepared = _prepare(streamed, questions, tokenizer, has_head=head is not None)
    return _plan(streamed, _deal(prepared, scorer, len(streamed.replicas))[0], scorer, batches)


def _scorer(model: PreTrainedModel, tail: Tail, head: Head | None, is_shared: bool) -> Scorer:
    if head is None:
        return LogProbabilities(model, tail, is_shared=is_shared)
    if backbone(model) is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no backbone apart from its head: score by log-probabilities")
    own = model.get_output_embeddings()
    width = own.weight.shape[-1] if own is not None else model.config.get_text_config().hidden_size
    return HeadOutputs(model, tail, ScoringHead(head, width=width, dtype=model.dtype, device=model.device), is_shared=is_shared)


def _prepare(
    streamed: StreamedModel, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase | None, *, has_head: bool
) -> list[PreparedQuestion]:
    if tokenizer is None and any(_has_text(question) for question in questions):
        tokenizer = load_tokenizer(streamed.plan.model_name)
    vocab_size = streamed.model.get_input_embeddings().weight.shape[0]
    reader = QuestionReader(streamed.model.config, vocab_size, tokenizer, feeds_last=has_head)
    return [reader.read(index, question) for index, question in enumerate(questions)]


def _has_text(question: Any) -> bool:
    if isinstance(question, str) or not isinstance(question, Sequence):
        return False
    flat = [each for part in question for each in ([part] if isinstance(part, str) or not isinstance(part, Sequence) else part)]
    return any(isinstance(each, str) for each in flat)


def _deal(prepared: Sequence[PreparedQuestion], scorer: Scorer, num_devices: int) -> list[list[PreparedQuestion]]:
    """Return each device's share of the questions, in their order, so that all have about as many tokens."""
    shares: list[list[PreparedQuestion]] = [[] for _ in range(num_devices)]
    tokens = [0] * num_devices
    for question in prepared:
        lane = tokens.index(min(tokens))
        shares[lane].append(question)
        tokens[lane] += sum(scorer.size(question).forwards)
    return shares


def _counter(
    streamed: StreamedModel,
    plan: WavePlan,
    share: Sequence[PreparedQuestion],
    scorer: Scorer,
    on_progress: Callable[[ScoreProgress], object] | None,
    *,
    total: int,
) -> ProgressCounter:
    weights = [sum(sum(scorer.size(share[place]).forwards) for place in wave) for wave in plan.waves]
    moved = sum(unit.residency is not Residency.DEVICE for unit in streamed.plan.units)
    return ProgressCounter(total=total, weights=weights, units=moved, tell=on_progress or _nobody)


def _plan(streamed: StreamedModel, prepared: Sequence[PreparedQuestion], scorer: Scorer, batches: int | None) -> WavePlan:
    sizes = [scorer.size(question) for question in prepared]
    return plan_waves(plan=streamed.plan, profile=streamed.profile, questions=sizes, batches=batches)


@dataclass(slots=True, kw_only=True)
class _Common:
    """What all devices share in one call of `score`: who is told, one at a time, and what has come.

    Attributes:
        is_shared: whether suffixes read the cache of their prefix.
        on_result: told of each result.
        counter: follows the first device through its waves, and counts every device's questions.
        results: those that have come, by the question's index.
        lock: held while anybody is told.
    """

    is_shared: bool
    on_result: Callable[[QuestionResult], object]
    counter: ProgressCounter
    results: dict[int, QuestionResult] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def tell(self, result: QuestionResult) -> None:
        """Pass one result on."""
        with self.lock:
            self.results[result.index] = result
            self.on_result(result)
            self.counter.end_question()


@dataclass(slots=True)
class _Run:
    """One device's share of a call of `score`."""

    group: SweepGroup
    prepared: list[PreparedQuestion]
    scorer: Scorer
    plan: WavePlan
    common: _Common
    is_counted: bool

    def all_waves(self) -> None:
        """Let one wave after another ride."""
        for wave in self.plan.waves:
            self._one_wave(wave)

    def _one_wave(self, wave: Sequence[int]) -> None:
        parties = {place: self.scorer.rides(self.prepared[place]) for place in wave}
        owners = [place for place, rides in parties.items() for _ in rides]
        arrived: dict[int, list[Arrival]] = {place: [] for place in wave}
        if self.is_counted:
            self.common.counter.start_wave(len(owners))

        def hear(arrival: Arrival) -> None:
            place = owners[arrival.number]
            arrived[place].append(arrival)
            if self.is_counted:
                self.common.counter.end_ride()
            if len(arrived[place]) == len(parties[place]):
                self.common.tell(self._result(place, arrived.pop(place)))

        self.group.run([ride for rides in parties.values() for ride in rides], on_arrival=hear)

    def _result(self, place: int, arrivals: list[Arrival]) -> QuestionResult:
        index, is_shared = self.prepared[place].index, self.common.is_shared
        arrivals = sorted(arrivals, key=lambda arrival: arrival.number)
        failed = next((arrival.error for arrival in arrivals if arrival.error is not None), None)
        if failed is not None and not isinstance(failed, Exception):
            raise failed
        if failed is not None:
            return QuestionResult(index=index, error=failed, is_shared=is_shared)
        try:
            scores = self.scorer.read(self.prepared[place], [arrival.value for arrival in arrivals])
        except ScoreError as error:
            return QuestionResult(index=index, error=error, is_shared=is_shared)
        return QuestionResult(index=index, scores=scores, is_shared=is_shared)


def _nobody(_: object) -> None:
    """Hear of something and do nothing."""
