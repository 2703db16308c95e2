"""Generate for many requests in shared sweeps.

Planning forms micro-batches and decides how many may run at once. Each micro-batch is one task, which calls
transformers' own `generate()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from ...engine.replica import Replica
from ...errors import PlanError
from ...model import StreamedModel
from ...planning.micro_batches import RowRequest, plan_batch
from ...spec.options import Workload
from ...spec.request_plans import BatchPlan, MicroBatch
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
from .packing import AnswerReader, TokenizedRequest, keywords_of, left_padded, prompt_ids
from .progress import BatchCounter, BatchProgress, CountTokens
from .requests import GenerationRequest, GenerationResult

_SEEDS = 2**31


def generate_many(
    streamed: StreamedModel,
    requests: Sequence[GenerationRequest | str],
    *,
    packed: bool = True,
    max_rows: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_result: Callable[[GenerationResult], object] | None = None,
    on_progress: Callable[[BatchProgress], object] | None = None,
) -> list[GenerationResult]:
    """Answer many requests, each with its own settings, in as few sweeps as the longest answer needs.

    Requests that run at the same time share every sweep. By default, requests of the same kind and of similar
    length are packed into one left-padded tensor, a micro-batch, which is much faster. Each micro-batch
    returns what transformers' `generate()` returns for that tensor. With `packed=False` every request has a
    tensor of its own and returns, bit for bit, what it returns alone. With a draft that is always so: each
    request speculates by itself, and the drafted tokens of all of them are verified in the same sweeps.

    How many run at once depends on the memory that the plan leaves after the weights: reserve it in `load`
    with `Workload(batch_size=…)`. The rest are admitted as others finish. A request that needs more than all
    of that memory runs alone; one that does not fit the budget even alone gets a `WorkloadExceededError`, as
    `generate()` would raise. With several devices, each one gets a share of the requests. Requests that
    sample run on the first device, because all threads share torch's random generator.

    Args:
        streamed: an open model.
        requests: requests, or texts; a text is a request with a prompt and nothing else.
        packed: let similar requests share a tensor.
        max_rows: at most this many rows share a sweep, regardless of memory; None lets memory decide.
            To split 100 requests into 4 batches, use 25.
        tokenizer: for prompts, stop texts and answers as text; by default the checkpoint's own if a request
            has text.
        on_result: called with each result as soon as it is ready; may raise. The model cannot run during the
            call. Runs in the calling thread; with several devices also in the other devices' threads, one
            call at a time.
        on_progress: called after every step; must be quick. An exception that it raises ends everything.

    Returns:
        One result per request, in their order. A request that failed has its `error`; the others are not
        affected.

    Raises:
        PlanError: a request or `max_rows` is invalid; the message names the request.
        UnsupportedModelError: the model has an adapter of prompt learning, which tasks cannot share.
        CheckpointError: a request has text and the checkpoint has no tokenizer.
        StreamError: called inside a forward or a callback of the same model.
        StreamClosedError: the model is closed, or was closed meanwhile.
    """
    prompts = [
        request if isinstance(request, GenerationRequest) else GenerationRequest(prompt=request)
        for request in requests
    ]
    has_text = any(request.has_text for request in prompts)
    tokenizer = tokenizer_for(streamed, tokenizer, is_needed=has_text)
    shares = _shares(streamed, prompts, tokenizer)
    plans = [_plan(streamed, share, packed, max_rows) for share in shares]
    counter = BatchCounter(
        len(prompts),
        sum(request.max_new_tokens for request in prompts),
        lambda: max(replica.group.sweeps for replica in streamed.replicas),
        on_progress or ignore,
    )
    collector = ResultCollector(on_result or ignore)
    runs = [
        _ShareRun(
            replica,
            # a draft works on the first device, which is the only one then
            streamed.generate if replica.index == 0 else replica.model.generate,
            share,
            plan,
            [_seed(share, micro_batch) for micro_batch in plan.micro_batches],
            tokenizer,
            counter,
            collector,
        )
        for replica, share, plan in zip(streamed.replicas, shares, plans, strict=True)
    ]
    run_tasks(
        streamed,
        lambda replica: runs[replica.index].batches(),
        is_regardless_of_memory=max_rows is not None,
    )
    return collector.in_order()


def plan_requests(
    streamed: StreamedModel,
    requests: Sequence[GenerationRequest],
    *,
    packed: bool = True,
    max_rows: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> BatchPlan:
    """Return the micro-batches that `generate_many` would form, and how many would run at once; runs nothing.

    With several devices, this is the plan for the first one's share.

    Raises:
        PlanError: a request or `max_rows` is invalid.
    """
    return _plan(streamed, _shares(streamed, requests, tokenizer)[0], packed, max_rows)


def _shares(
    streamed: StreamedModel, requests: Sequence[GenerationRequest], tokenizer: PreTrainedTokenizerBase | None
) -> list[list[TokenizedRequest]]:
    check_adapters(streamed, [request.adapter for request in requests])
    vocab_size = streamed.model.get_input_embeddings().weight.shape[0]
    return split_among_devices(
        [_tokenize(index, request, tokenizer, vocab_size) for index, request in enumerate(requests)],
        len(streamed.replicas),
        tokens=_max_tokens,
        stays_on_first=lambda tokenized: tokenized.request.do_sample,
        longest_first=True,
    )


def _max_tokens(tokenized: TokenizedRequest) -> int:
    request = tokenized.request
    return (len(tokenized.ids) + request.max_new_tokens) * request.num_beams


def _tokenize(
    index: int, request: GenerationRequest, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> TokenizedRequest:
    try:
        ids = prompt_ids(request, tokenizer, vocab_size)
    except PlanError as error:
        raise PlanError(f"request {index}: {error}") from error
    return TokenizedRequest(index=index, request=request, ids=ids)


def _plan(
    streamed: StreamedModel, share: Sequence[TokenizedRequest], packed: bool, max_rows: int | None
) -> BatchPlan:
    kinds: dict[object, int] = {}
    rows = [
        RowRequest(
            kind=kinds.setdefault(tokenized.request.kind(), len(kinds)),
            rows=tokenized.request.num_beams,
            prompt_tokens=len(tokenized.ids),
            new_tokens=tokenized.request.max_new_tokens,
            is_alone=tokenized.request.is_alone,
        )
        for tokenized in share
    ]
    return plan_batch(
        plan=streamed.plan,
        profile=streamed.profile,
        requests=rows,
        packed=packed and not streamed.plan.draft,
        max_rows=_most_rows(streamed, max_rows),
    )


def _most_rows(streamed: StreamedModel, max_rows: int | None) -> int | None:
    """Return how many rows may share a sweep: with a draft, no more than its memory is for."""
    if not streamed.plan.draft:
        return max_rows
    reserved = (streamed.options.workload or Workload()).batch_size
    return reserved if max_rows is None else max_rows


def _seed(share: Sequence[TokenizedRequest], micro_batch: MicroBatch) -> int | None:
    """Return the micro-batch's seed; the caller's generator supplies one if its request has none."""
    request = share[micro_batch.requests[0]].request
    if not request.do_sample:
        return None
    return request.seed if request.seed is not None else int(torch.randint(_SEEDS, ()).item())


@dataclass(slots=True)
class _ShareRun:
    """One device's share of a call of `generate_many`: every micro-batch is a task."""

    replica: Replica
    generate: Callable[..., torch.Tensor]
    share: list[TokenizedRequest]
    plan: BatchPlan
    seeds: list[int | None]
    tokenizer: PreTrainedTokenizerBase | None
    counter: BatchCounter
    collector: ResultCollector[GenerationResult]

    def batches(self) -> Iterable[TaskBatch]:
        """Return all tasks as one batch; its capacity decides how many of them run at once."""
        tasks = [
            Task(call=partial(self._generate, number), weight=micro_batch.weight)
            for number, micro_batch in enumerate(self.plan.micro_batches)
        ]
        return [TaskBatch(tasks=tasks, on_task=self._on_task, capacity=self.plan.capacity)]

    @property
    def _model(self) -> PreTrainedModel:
        return self.replica.model

    def _members(self, number: int) -> list[TokenizedRequest]:
        return [self.share[index] for index in self.plan.micro_batches[number].requests]

    def _generate(self, number: int) -> list[list[int]]:
        """Return the new tokens of every row of a micro-batch: (rows, tokens)."""
        members, seed = self._members(number), self.seeds[number]
        request = members[0].request
        self.replica.adapters.choose(request.adapter)
        options = keywords_of(request, self._model, self.tokenizer)
        inputs = left_padded(
            [member.ids for member in members], int(options["pad_token_id"]), self._model.device
        )
        length = inputs["input_ids"].shape[1]
        count = CountTokens(length, len(members), self._on_tokens)
        options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), count])
        if seed is not None:
            torch.manual_seed(seed)
        longest = max(member.request.max_new_tokens for member in members)
        generated = self.generate(**inputs, max_new_tokens=longest, **options)
        rows: list[list[int]] = generated[:, length:].tolist()
        return rows

    def _on_tokens(self, count: int) -> None:
        try:
            with self.collector.lock:
                self.counter.add_tokens(count)
        except Exception as error:  # noqa: BLE001 - the callback's error belongs to no request, so it ends the run
            self.replica.group.stop(error)

    def _on_task(self, task_result: TaskResult) -> None:
        error, reader = error_of(task_result), AnswerReader(self._model, self.tokenizer)
        for row, member in enumerate(self._members(task_result.number)):
            if error is None:
                result = reader.read(member, task_result.value[row], self.seeds[task_result.number])
                generated = len(task_result.value[row])
            else:
                result, generated = _failed(member, error), member.request.max_new_tokens
            unused = member.request.max_new_tokens - generated
            self.collector.add(result, partial(self.counter.end_request, unused))


def _failed(member: TokenizedRequest, error: Exception) -> GenerationResult:
    return GenerationResult(
        index=member.index, request=member.request, prompt_tokens=len(member.ids), error=error
    )
