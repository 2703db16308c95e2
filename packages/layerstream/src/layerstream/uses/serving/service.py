"""Answer requests as they come: those that run at the same time share every sweep.

One thread for each device owns that device's sweeps, and all devices share one queue. A request that arrives
while they run joins at the next first block; one that is cancelled leaves at the next unit, or at once if it
has not begun. A device without requests makes no sweeps, and the others do not wait for it. Each request has
a tensor of its own, so its answer is what it would be alone, bit for bit.

Invariants (each with the test that holds it, in tests/unit/uses/serving: 1 to 4 in test_service.py, 5 to 8 in
test_devices.py):
 1. Every request that `submit` takes gets exactly one last event
    (test_every_request_ends_once_whatever_happens).
 2. Requests are admitted in the order in which they came, on each device that they may go to (see
    `Lanes.admit`; test_requests_are_admitted_in_order).
 3. What runs together on a device fits the memory that the plan leaves there
    (test_what_runs_together_fits_the_room).
 4. An error of one request reaches no other (test_an_error_ends_one_request_alone).
 5. Devices that work at the same time share every read (test_devices_share_every_read).
 6. A device without requests holds up no other (test_a_device_without_requests_holds_up_no_other).
 7. What ends the sweeps of one device ends no request of another (test_a_device_ends_alone).
 8. Requests that sample are repeatable beside others (test_requests_that_sample_are_repeatable).
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from transformers import PreTrainedTokenizerBase

from ...errors import PlanError, QueueFullError, ServiceClosedError, StreamClosedError, StreamError
from ...model import StreamedModel
from ...planning.admission import Admission
from ...planning.drafting import MOST_DRAFTED
from ...spec.options import Workload
from ...spec.sizes import format_bytes
from ...streaming.scheduler import Task, TaskAbandonedError
from ..batching.packing import TokenizedRequest, end_tokens, prompt_ids
from ..batching.requests import GenerationRequest
from ..runner import check_adapters, tokenizer_for
from .answering import generate_answer
from .events import AnswerEvent, ServiceStatus
from .lanes import Lane, Lanes
from .pace import Pace
from .prefix_cache import open_prefix_cache
from .ticket import Entry, Outcome, ServiceTicket, Stage

MOST_WAITING = 256
"""How many requests wait at most, unless told otherwise."""

_SEEDS = 2**31


class GenerationService:
    """Answers requests on one streamed model; see `protocol.Service`.

    Attributes:
        model_name: the directory or Hub id of the model.
        tokenizer: the model's.
        context_tokens: the limit on the tokens of a prompt and its answer together.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """Start to serve.

        Args:
            streamed: an open model, on one device or several. The workload in its options says how long a
                request may be; with a draft, its `batch_size` says how many run together. With
                `prefix_cache`, the next turn of a conversation does not compute the earlier ones again; see
                `PrefixCache`.
            tokenizer: the model's; by default the checkpoint's own.
            most_waiting: how many requests may wait.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
            UnsupportedModelError: the model has an adapter of prompt learning, which tasks cannot share.
        """
        check_adapters(streamed, [])
        workload = streamed.options.workload or Workload()
        found = tokenizer_for(streamed, tokenizer, is_needed=True)
        assert found is not None
        self.tokenizer = found
        self.model_name = streamed.plan.model_name
        # with a draft, the workload has room for drafted tokens too
        self.context_tokens = workload.context_tokens - (MOST_DRAFTED if streamed.plan.draft else 0)
        self._streamed, self._most_waiting = streamed, most_waiting
        self._vocab_size = streamed.model.get_input_embeddings().weight.shape[0]
        self._admission = Admission(
            streamed.plan,
            streamed.profile,
            most_running=workload.batch_size if streamed.plan.draft else None,
        )
        self._prefixes = open_prefix_cache(streamed)
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._lanes = Lanes(streamed.replicas, self._admission)
        self._counts: Counter[str] = Counter()
        self._pace = Pace(streamed.plan.cost.sweep_s)
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name="layerstream-service", daemon=True)
            for lane in self._lanes.lanes
        ]
        for thread in self._threads:
            thread.start()

    # -- for any thread ----------------------------------------------------------------------------------

    def submit(
        self,
        request: GenerationRequest,
        on_event: Callable[[AnswerEvent], object],
        *,
        top_logprobs: int | None = None,
        scores_prompt: bool = False,
    ) -> ServiceTicket:
        """Put a request into the queue; returns at once. See `protocol.Service.submit`."""
        entry = self._entry(request, on_event, top_logprobs, scores_prompt and top_logprobs is not None)
        with self._changed:
            self._check_open()
            self._waiting.append(entry)
            self._lanes.admit(self._waiting)
            if entry.stage is Stage.WAITING and len(self._waiting) > self._most_waiting:
                eta_s = min(self._starts_s()[:-1])
                self._waiting.pop()
                num_waiting = len(self._waiting)
                raise QueueFullError(
                    f"the queue is full: {num_waiting} requests wait already; try again later",
                    waiting=num_waiting,
                    eta_s=eta_s,
                )
            self._counts["submitted"] += 1
            entry.number = self._counts["submitted"]
            self._changed.notify_all()
        return ServiceTicket(self, entry)

    def status(self) -> ServiceStatus:
        """Return what it does now."""
        with self._changed:
            running = len(self._lanes.running)
            return ServiceStatus(
                running=running,
                waiting=len(self._waiting),
                most_waiting=self._most_waiting,
                answered=self._counts[Outcome.ANSWERED.value],
                failed=self._counts[Outcome.FAILED.value],
                cancelled=self._counts[Outcome.CANCELLED.value],
                prompt_tokens=self._counts["prompt_tokens"],
                generated_tokens=self._counts["generated_tokens"],
                sweeps=self._lanes.sweeps,
                sweep_s=self._pace.sweep_s,
                token_s=self._token_s,
                tokens_per_s=self._pace.tokens_per_s if running else 0.0,
                wait_s=self._starts_s()[-1] + self._pace.sweep_s,
                reused_tokens=self._counts["reused_tokens"],
                prefix_bytes=self._prefixes.num_bytes if self._prefixes else 0,
            )

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept nothing more, wait up to `drain_s` seconds for what runs and waits, and cancel the rest."""
        deadline_s = monotonic() + drain_s
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            while (self._waiting or self._lanes.running) and (left_s := deadline_s - monotonic()) > 0:
                self._changed.wait(left_s)
            # those that wait first: one that runs would leave its place to them
            rest = [*self._waiting, *self._lanes.running]
        for entry in rest:
            self.cancel(entry)
        for thread in self._threads:
            thread.join()

    def cancel(self, entry: Entry) -> None:
        """End a request that has not begun; let one that has leave the sweep at the next unit."""
        with self._changed:
            entry.is_cancelled.set()
            if entry.stage is not Stage.WAITING and not self._lanes.has_arrived(entry):
                return
            self._retire(entry, None)
        entry.end(None, self._ends(entry))

    def position(self, entry: Entry) -> int:
        """Return a request's place in the queue, from 1; 0 if it is not in it."""
        with self._changed:
            return self._waiting.index(entry) + 1 if entry.stage is Stage.WAITING else 0

    def first_token_eta_s(self, entry: Entry) -> float:
        """Return the estimated seconds until a request's first token; 0 once it has one."""
        with self._changed:
            if entry.tokens or entry.stage is Stage.ENDED:
                return 0.0
            starts = self._starts_s()[self._waiting.index(entry)] if entry.stage is Stage.WAITING else 0.0
            return starts + self._pace.sweep_s

    def eta_s(self, entry: Entry) -> float:
        """Return the estimated seconds until a request ends if it takes all the tokens it may."""
        first_s = self.first_token_eta_s(entry)
        with self._changed:
            if entry.stage is Stage.ENDED:
                return 0.0
            return first_s + entry.most_left * self._token_s

    # -- requests ----------------------------------------------------------------------------------------

    def _entry(
        self,
        request: GenerationRequest,
        on_event: Callable[[AnswerEvent], object],
        top_logprobs: int | None,
        scores_prompt: bool,
    ) -> Entry:
        """Return a valid request with its tokens and its memory."""
        if request.num_beams > 1:
            raise PlanError("a service answers without beam search: leave out num_beams")
        self._streamed.replicas[0].adapters.check(request.adapter, "the request")
        ids = prompt_ids(request, self.tokenizer, self._vocab_size)
        num_prompt = len(ids)
        size = self._admission.request_bytes(num_prompt, request.max_new_tokens, scores_prompt=scores_prompt)
        if num_prompt + request.max_new_tokens > self.context_tokens:
            raise PlanError(
                f"the prompt has {num_prompt:,} tokens, and {request.max_new_tokens:,} new ones were asked "
                f"for; this service has room for {self.context_tokens:,} together: ask for less"
            )
        if not self._admission.fits(size, []):
            raise PlanError(
                f"a prompt of {num_prompt:,} tokens{' with logprobs' if scores_prompt else ''} and "
                f"{request.max_new_tokens:,} new ones take "
                f"{format_bytes(self._admission.bytes_of([size]))}; this service has "
                f"{format_bytes(self._admission.room_bytes)} for requests: ask for less"
            )
        seed = request.seed if request.seed is not None else secrets.randbelow(_SEEDS)
        return Entry(
            number=0,
            tokenized=TokenizedRequest(index=0, request=request, ids=ids),
            size=size,
            seed=seed if request.do_sample else None,
            top_logprobs=top_logprobs,
            scores_prompt=scores_prompt,
            on_event=on_event,
            tokenizer=self.tokenizer,
        )

    def _check_open(self) -> None:
        if self._is_closing or self._streamed.is_closed:
            raise ServiceClosedError("this service is closing and takes no more requests")

    @property
    def _token_s(self) -> float:
        """Seconds per token of one answer."""
        return self._pace.sweep_s / self._streamed.tokens_per_sweep

    def _starts_s(self) -> list[float]:
        """Return in how many seconds each waiting request starts, and a greedy one behind them."""
        return self._lanes.starts_s(self._waiting, self._token_s)

    # -- the service's own threads -----------------------------------------------------------------------

    def _serve(self, lane: Lane) -> None:
        """Run one device's sweeps while it has requests; ends after `close`."""
        while first := self._wait_for_requests(lane):
            error: BaseException = StreamError("the sweeps ended before the answer")
            try:
                with self._streamed.on_device(lane.replica):
                    # no tasks yet: until the device is free, requests may leave
                    lane.replica.group.run((), arrivals=partial(self._arrivals, lane))
            except BaseException as raised:  # noqa: BLE001 - handed on to every request that was running
                error = raised
            self._fail(lane, error, first)

    def _wait_for_requests(self, lane: Lane) -> Sequence[Entry]:
        """Return what a device was given; nothing once the service closes and no request waits for it."""
        with self._changed:
            while not lane.arrived:
                if self._is_closing and not self._waiting:
                    return ()
                self._changed.wait()
            if not self._lanes.is_sweeping:
                self._pace.begin(self._lanes.sweeps)
            self._lanes.begin_sweeps(lane)
            return tuple(lane.arrived)

    def _arrivals(self, lane: Lane) -> Sequence[Task]:
        """Return what a device was given since it was last asked."""
        if not lane.arrived:
            return ()
        with self._changed:
            entries = lane.take()
            self._counts["prompt_tokens"] += sum(len(entry.tokenized.ids) for entry in entries)
        return [
            Task(call=partial(self._answer, lane, entry), is_cancelled=entry.is_cancelled.is_set)
            for entry in entries
        ]

    def _answer(self, lane: Lane, entry: Entry) -> None:
        """Answer a request; runs as a task of the sweeps."""
        error: Exception | None = None
        try:
            self._generate(lane, entry)
        except TaskAbandonedError:
            if not entry.is_cancelled.is_set():
                raise  # the whole run was abandoned: `_fail` says why
        except Exception as raised:  # noqa: BLE001 - it is this request's alone
            error = raised
        self._end(entry, error)

    def _generate(self, lane: Lane, entry: Entry) -> None:
        """Generate an answer, after the beginning of its prompt that is known."""
        ids, prefixes = entry.tokenized.ids, self._prefixes
        # what is not computed again has no logits
        if prefixes is None or entry.scores_prompt:
            generate_answer(self._streamed, lane.replica, entry, self._count_tokens)
            return
        cache = prefixes.take(ids)
        entry.reused_tokens = cache.get_seq_length()
        with self._changed:
            self._counts["reused_tokens"] += entry.reused_tokens
        generate_answer(self._streamed, lane.replica, entry, self._count_tokens, cache)
        prefixes.put([*ids, *entry.tokens], cache)

    def _count_tokens(self, count: int) -> None:
        with self._changed:
            self._counts["generated_tokens"] += count
            self._pace.record(count, self._lanes.sweeps)

    def _fail(self, lane: Lane, error: BaseException, first: Sequence[Entry]) -> None:
        """End what was running on a device whose sweeps ended; with a closed model, what waits too.

        What has come meanwhile is for its next sweeps, except what these were to begin with: an error that
        comes each time would never end.
        """
        with self._changed:
            self._lanes.end_sweeps(lane)
            if self._streamed.is_closed:
                left = [*lane.running, *self._waiting]
                if not isinstance(error, StreamClosedError):
                    error = StreamClosedError("this streamed model is closed: load it again")
            else:
                left = [entry for entry in lane.running if entry in first or entry not in lane.arrived]
        for entry in left:
            self._end(entry, error if isinstance(error, Exception) else StreamError(str(error)))

    def _end(self, entry: Entry, error: Exception | None) -> None:
        with self._changed:
            if entry.stage is Stage.ENDED:  # it was cancelled just now
                return
            self._retire(entry, error)
        entry.end(error, self._ends(entry))

    def _retire(self, entry: Entry, error: Exception | None) -> None:
        """Remove a request from where it is, and count it; the lock is held."""
        (self._waiting if entry.stage is Stage.WAITING else self._lanes).remove(entry)
        entry.stage = Stage.ENDED
        self._counts[entry.outcome(error).value] += 1
        if not self._streamed.is_closed:  # else `_fail` ends those that wait
            self._lanes.admit(self._waiting)
        self._changed.notify_all()

    def _ends(self, entry: Entry) -> frozenset[int]:
        return end_tokens(self._streamed.model, entry.tokenized.request)
