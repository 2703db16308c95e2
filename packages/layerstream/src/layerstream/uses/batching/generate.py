"""Generate for many requests in the same sweeps.

Layer: uses. Lets planning form micro-batches and decide what may task at once, and hands each micro-batch to the sweep group as one task that
calls transformers' own `generate()`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from ...engine.tokenizer import load_tokenizer
from ...errors import PlanError
from ...model import StreamedModel
from ...planning.micro_batches import RowRequest, plan_batch
from ...spec.plans import BatchPlan, MicroBatch
from ...streaming.scheduler import Task, TaskResult
from ...streaming.sweep_group import SweepGroup
from .packing import AnswerReader, TokenizedRequest, left_padded, pad_token
from .progress import BatchProgress, CountTokens, ProgressCounter
from .requests import GenerationRequest, GenerationResult

_SEEDS = 2**31


def generate_many(
    streamed: StreamedModel,
    requests: Sequence[GenerationRequest | str],
    *,
    isolate: bool = False,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_result: Callable[[GenerationResult], object] | None = None,
    on_progress: Callable[[BatchProgress], object] | None = None,
) -> list[GenerationResult]:
    """Answer many requests, each with its own settings, reading the streamed weights for the longest instead of for each.

    Requests that task together share every sweep. Packed, which is the default and much the faster way, those of the same kind and
    of similar length share one left-padded tensor, and each micro-batch gives what transformers' `generate()` gives for that very tensor.
    With `isolate` every request is a tensor of its own and gives, bit for bit, what it gives alone.

    How many task at once follows from the memory that the plan left beside the weights: tell `load` of them with
    `Workload(batch_size=…)`. The rest board as others end. A request that alone needs more than that tasks alone, as in
    `generate()`. Several devices each take a share of the requests and task on one reading; what samples tasks on the first, since
    torch has one random generator for all threads.

    Args:
        streamed: an open model.
        requests: a text alone is a request with nothing but a prompt.
        isolate: give every request a tensor of its own.
        batches: let about 1/`batches` of all rows task at once, whatever memory says.
        tokenizer: for prompts and stop texts, and for answers as text; the checkpoint's own is loaded where a request has text.
        on_result: told of each answer as it comes, where the model cannot run then; may raise. In the calling thread; with several
            devices in the threads of the others too, one call at a time.
        on_progress: told after every step; must be quick. What it raises ends everything.

    Returns:
        One result a request, in their order. A request that failed has its `error`; the others are not touched by it.

    Raises:
        PlanError: a request or `batches` makes no sense; says which request.
        CheckpointError: a request has text and the checkpoint has no tokenizer.
        StreamError: called inside a forward or a callback of the same model.
        StreamClosedError: the model is closed, or was meanwhile.
    """
    asked = [
        each if isinstance(each, GenerationRequest) else GenerationRequest(prompt=each) for each in requests
    ]
    if tokenizer is None and any(isinstance(each.prompt, str) or each.stop for each in asked):
        tokenizer = load_tokenizer(streamed.plan.model_name)
    shares = deal(prepare(streamed, asked, tokenizer), len(streamed.replicas))
    plans = [_plan(streamed, share, isolate, batches) for share in shares]
    seeds = [
        [_seed(share, micro_batch) for micro_batch in plan.micro_batches]
        for share, plan in zip(shares, plans, strict=True)
    ]
    most_tokens = sum(each.max_new_tokens for each in asked)
    counter = ProgressCounter(
        len(asked), most_tokens, lambda: max(g.sweeps for g in streamed.groups), on_progress or _nobody
    )
    common = Listeners(counter=counter, on_result=on_result or _nobody)

    def work(replica: PreTrainedModel, index: int) -> None:
        Batch(
            replica, streamed.groups[index], shares[index], plans[index], seeds[index], tokenizer, common
        ).run()

    streamed.run_on_devices(work)
    return [common.results[index] for index in range(len(asked))]


def plan_requests(
    streamed: StreamedModel,
    requests: Sequence[GenerationRequest],
    *,
    isolate: bool = False,
    batches: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> BatchPlan:
    """Return how `generate_many` would micro-batch these requests and how many would task at once; nothing is run.

    With several devices: those of the first one's share.

    Raises:
        PlanError: a request or `batches` makes no sense.
    """
    return _plan(
        streamed, deal(prepare(streamed, requests, tokenizer), len(streamed.replicas))[0], isolate, batches
    )


def prepare(
    streamed: StreamedModel, requests: Sequence[GenerationRequest], tokenizer: PreTrainedTokenizerBase | None
) -> list[TokenizedRequest]:
    """Return every request with its prompt as tokens.

    Raises:
        PlanError: a prompt has no tokens or one outside the vocabulary, or text meets no tokenizer.
    """
    vocabulary = streamed.model.get_input_embeddings().weight.shape[0]
    prepared = []
    for index, request in enumerate(requests):
        if tokenizer is None and (isinstance(request.prompt, str) or request.stop):
            raise PlanError(f"request {index} has text: give a tokenizer")
        ids = (
            tokenizer(request.prompt)["input_ids"]
            if isinstance(request.prompt, str) and tokenizer
            else request.prompt
        )
        if not len(ids):
            raise PlanError(f"the prompt of request {index} has no tokens")
        if max(ids) >= vocabulary:
            raise PlanError(
                f"the prompt of request {index} has token {max(ids)}, but the vocabulary ends at {vocabulary - 1}"
            )
        prepared.append(
            TokenizedRequest(index=index, request=request, ids=tuple(int(token) for token in ids))
        )
    return prepared


def deal(prepared: Sequence[TokenizedRequest], num_devices: int) -> list[list[TokenizedRequest]]:
    """Return each device's share: what samples to the first one, the others so that all have about as many tokens.

    The longest are dealt first, so that each micro-batch holds its like; a share is in the order of the requests.
    """
    shares: list[list[TokenizedRequest]] = [[] for _ in range(num_devices)]
    tokens = [0] * num_devices
    for each in sorted(prepared, key=lambda one: (not one.request.do_sample, -_tokens(one))):
        index = 0 if each.request.do_sample else tokens.index(min(tokens))
        shares[index].append(each)
        tokens[index] += _tokens(each)
    return [sorted(share, key=lambda one: one.index) for share in shares]


def _tokens(prepared: TokenizedRequest) -> int:
    return (len(prepared.ids) + prepared.request.max_new_tokens) * prepared.request.num_beams


def _plan(
    streamed: StreamedModel, prepared: Sequence[TokenizedRequest], isolate: bool, batches: int | None
) -> BatchPlan:
    kinds: dict[object, int] = {}
    rows = [
        RowRequest(
            kind=kinds.setdefault(each.request.kind(), len(kinds)),
            rows=each.request.num_beams,
            prompt_tokens=len(each.ids),
            new_tokens=each.request.max_new_tokens,
            is_alone=each.request.is_alone,
        )
        for each in prepared
    ]
    return plan_batch(
        plan=streamed.plan, profile=streamed.profile, requests=rows, packed=not isolate, batches=batches
    )


def _seed(prepared: Sequence[TokenizedRequest], micro_batch: MicroBatch) -> int | None:
    """Return what the micro-batch draws from; where it has none, the caller's generator gives one, micro-batch by micro-batch."""
    request = prepared[micro_batch.requests[0]].request
    if not request.do_sample:
        return None
    return request.seed if request.seed is not None else int(torch.randint(_SEEDS, ()).item())


@dataclass(slots=True, kw_only=True)
class Listeners:
    """Who is told of what all devices come to, one call at a time.

    Attributes:
        counter: adds up.
        on_result: told of each answer.
        results: those that have come, by the request's index.
        lock: held while anybody is told.
    """

    counter: ProgressCounter
    on_result: Callable[[GenerationResult], object]
    results: dict[int, GenerationResult] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def tell(self, result: GenerationResult, tokens_never_made: int) -> None:
        """Pass one answer on."""
        with self.lock:
            self.results[result.index] = result
            self.on_result(result)
            self.counter.end_request(tokens_never_made)


@dataclass(slots=True)
class Batch:
    """One device's share of a call of `generate_many`."""

    model: PreTrainedModel
    group: SweepGroup
    prepared: list[TokenizedRequest]
    plan: BatchPlan
    seeds: list[int | None]
    tokenizer: PreTrainedTokenizerBase | None
    listeners: Listeners

    def run(self) -> None:
        """Let every micro-batch task to its end."""
        tasks = [
            Task(call=partial(self._generate, number), weight=micro_batch.weight)
            for number, micro_batch in enumerate(self.plan.micro_batches)
        ]
        self.group.run(tasks, capacity=self.plan.capacity, on_result=self._finished)

    def _members(self, number: int) -> list[TokenizedRequest]:
        return [self.prepared[index] for index in self.plan.micro_batches[number].requests]

    def _generate(self, number: int) -> list[list[int]]:
        """Return the new tokens of every row of a micro-batch: (rows, tokens)."""
        model, members, seed = self.model, self._members(number), self.seeds[number]
        pad = int(members[0].request.options.get("pad_token_id", pad_token(model)))
        inputs = left_padded([each.ids for each in members], pad, model.device)
        length = inputs["input_ids"].shape[1]
        options = {"pad_token_id": pad, **members[0].request.generate_options()}
        if members[0].request.stop:
            options["tokenizer"] = self.tokenizer
        count = CountTokens(length, len(members), self._count)
        options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), count])
        if seed is not None:
            torch.manual_seed(seed)
        longest = max(each.request.max_new_tokens for each in members)
        rows: list[list[int]] = model.generate(**inputs, max_new_tokens=longest, **options)[
            :, length:
        ].tolist()
        return rows

    def _count(self, tokens: int) -> None:
        try:
            with self.listeners.lock:
                self.listeners.counter.add_tokens(tokens)
        except Exception as error:  # noqa: BLE001 - the listener's: it belongs to no request, so it ends the run
            self.group.stop(error)

    def _finished(self, task_result: TaskResult) -> None:
        members, seed = self._members(task_result.number), self.seeds[task_result.number]
        reader = AnswerReader(self.model, self.tokenizer)
        for place, each in enumerate(members):
            if task_result.error is None:
                result = reader.read(each, task_result.value[place], seed)
                made = len(task_result.value[place])
            else:
                result, made = _failed(each, task_result.error), each.request.max_new_tokens
            self.listeners.tell(result, each.request.max_new_tokens - made)


def _failed(prepared: TokenizedRequest, error: BaseException) -> GenerationResult:
    if not isinstance(error, Exception):
        raise error
    return GenerationResult(
        index=prepared.index, request=prepared.request, prompt_tokens=len(prepared.ids), error=error
    )


def _nobody(_: object) -> None:
    """Hear of something and do nothing."""
