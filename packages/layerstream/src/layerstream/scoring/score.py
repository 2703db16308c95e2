"""Score many questions in as few sweeps as memory allows.

Layer: uses. Lets planning form waves, hands each wave to the sweep group, and puts the results together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..architecture.shared_prefix import why_not_shared
from ..architecture.tail import Tail, backbone
from ..decisions import Residency
from ..errors import ScoreError, UnsupportedModelError
from ..model import StreamedModel
from ..planning.waves import WavePlan, plan_waves
from ..streaming.baton import Arrival
from ..tokenizer import load_tokenizer
from .head import Head, ScoringHead
from .progress import ProgressCounter, ScoreProgress
from .questions import PreparedQuestion, Question, QuestionReader
from .results import QuestionResult
from .rides import HeadOutputs, LogProbabilities, Scorer


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
    suffix alone on a copy of that cache. Where a model's cache cannot be shared (a recurrent state), each suffix runs with its
    prefix as one text, all in the same sweep, and equals transformers' forward of that text.

    Text is tokenized as in `questions`: special tokens once, in front of the prefix. An empty prefix is the model's BOS token.

    Args:
        streamed: an open model.
        questions: pairs of a prefix and its suffixes, each text or token ids.
        head: score by this head's outputs on the last hidden state of each suffix' last token, instead of by log-probabilities:
            a module that takes (1, hidden size), or a safetensors file with its weight. The hidden state is cast to its dtype.
        batches: form so many waves, whatever memory says; None forms as few as the plan leaves room for.
        tokenizer: for texts; the checkpoint's own is loaded where there are any.
        on_result: told of each question's result as it comes, in the calling thread, where the model cannot run then; may raise.
        on_progress: told after every moved unit and every forward; must be quick. What it raises ends everything.

    Returns:
        One result a question, in their order. A question that failed while it ran has its `error`; the others are not touched.

    Raises:
        PlanError: a question, the head or `batches` makes no sense; says which one. Nothing has run then.
        CheckpointError: the head's file cannot be used, or there is text and no tokenizer.
        UnsupportedModelError: a head was given for a model without a backbone of its own.
        StreamError: called inside a forward or a callback of the same model.
        StreamClosedError: the model is closed, or was meanwhile.
    """
    tail = Tail(streamed.model)
    is_shared = why_not_shared(streamed.model) is None
    scorer = _scorer(streamed, tail, head, is_shared)
    prepared = _prepare(streamed, questions, tokenizer, has_head=head is not None)
    plan = _plan(streamed, prepared, scorer, batches)
    run = _Run(streamed, prepared, scorer, plan, is_shared, on_result or _nobody, on_progress or _nobody)
    with tail.attached():
        return run.all_waves()


def plan_scores(
    streamed: StreamedModel,
    questions: Sequence[Question],
    *,
    head: Head | None = None,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> WavePlan:
    """Return how many sweeps `score` would take and the memory of the heaviest; nothing is run.

    Raises:
        PlanError: a question, the head or `batches` makes no sense.
    """
    scorer = _scorer(streamed, Tail(streamed.model), head, why_not_shared(streamed.model) is None)
    return _plan(streamed, _prepare(streamed, questions, tokenizer, has_head=head is not None), scorer, batches)


def _scorer(streamed: StreamedModel, tail: Tail, head: Head | None, is_shared: bool) -> Scorer:
    model = streamed.model
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


def _plan(streamed: StreamedModel, prepared: Sequence[PreparedQuestion], scorer: Scorer, batches: int | None) -> WavePlan:
    sizes = [scorer.size(question) for question in prepared]
    return plan_waves(plan=streamed.plan, profile=streamed.profile, questions=sizes, batches=batches)


@dataclass(slots=True)
class _Run:
    """One call of `score`."""

    streamed: StreamedModel
    prepared: list[PreparedQuestion]
    scorer: Scorer
    plan: WavePlan
    is_shared: bool
    on_result: Callable[[QuestionResult], object]
    on_progress: Callable[[ScoreProgress], object]
    results: dict[int, QuestionResult] = field(default_factory=dict)

    def all_waves(self) -> list[QuestionResult]:
        weights = [sum(sum(self.scorer.size(self.prepared[place]).forwards) for place in wave) for wave in self.plan.waves]
        moved = sum(unit.residency is not Residency.DEVICE for unit in self.streamed.plan.units)
        counter = ProgressCounter(total=len(self.prepared), weights=weights, units=moved, tell=self.on_progress)
        unsubscribe = self.streamed.timeline.subscribe(counter.observe)
        try:
            for wave in self.plan.waves:
                self._one_wave(wave, counter)
        finally:
            unsubscribe()
        return [self.results[index] for index in range(len(self.prepared))]

    def _one_wave(self, wave: Sequence[int], counter: ProgressCounter) -> None:
        parties = {place: self.scorer.rides(self.prepared[place]) for place in wave}
        owners = [place for place, rides in parties.items() for _ in rides]
        arrived: dict[int, list[Arrival]] = {place: [] for place in wave}
        counter.start_wave(len(owners))

        def hear(arrival: Arrival) -> None:
            place = owners[arrival.number]
            arrived[place].append(arrival)
            counter.end_ride()
            if len(arrived[place]) == len(parties[place]):
                self.results[place] = self._result(place, arrived.pop(place))
                self.on_result(self.results[place])
                counter.end_question()

        self.streamed.group.run([ride for rides in parties.values() for ride in rides], on_arrival=hear)

    def _result(self, place: int, arrivals: list[Arrival]) -> QuestionResult:
        arrivals = sorted(arrivals, key=lambda arrival: arrival.number)
        failed = next((arrival.error for arrival in arrivals if arrival.error is not None), None)
        if failed is not None and not isinstance(failed, Exception):
            raise failed
        if failed is not None:
            return QuestionResult(index=place, error=failed, is_shared=self.is_shared)
        try:
            scores = self.scorer.read(self.prepared[place], [arrival.value for arrival in arrivals])
        except ScoreError as error:
            return QuestionResult(index=place, error=error, is_shared=self.is_shared)
        return QuestionResult(index=place, scores=scores, is_shared=self.is_shared)


def _nobody(_: object) -> None:
    """Hear of something and do nothing."""
