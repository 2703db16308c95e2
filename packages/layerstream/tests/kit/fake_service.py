"""A service without a model: answers are a function of the prompt, and tests decide when a sweep happens.

Test kit. The default answer is the prompt backwards, one character per token; a request that samples adds its
seed. One thread does the sweeps, as in a real service, and calls the events.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from layerstream.errors import PlanError, QueueFullError, ServiceClosedError
from layerstream.uses.batching.requests import GenerationRequest, GenerationResult
from layerstream.uses.serving.events import (
    AnswerEnded,
    AnswerEvent,
    AnswerPart,
    AnswerStarted,
    PromptScored,
    ServiceStatus,
    TokenChance,
)

SWEEP_S = 2.0
END_TOKEN = 2
CHAT_TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}> {% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_PATIENCE_S = 20.0


class FakeTicket:
    """One request in a fake service."""

    def __init__(
        self,
        service: FakeService,
        number: int,
        request: GenerationRequest,
        on_event: Callable[[AnswerEvent], object],
        top_logprobs: int | None,
        scores_prompt: bool,
    ) -> None:
        self.number, self.request, self.on_event = number, request, on_event
        self.prompt_tokens = len(request.prompt)
        self.is_cancelled = False
        self.reused_tokens = 0
        self._service = service
        self._num_top, self._scores_prompt = top_logprobs, scores_prompt
        self.tokens: list[int] = []
        self.text = ""
        self._pieces, self.finish_reason = service.pieces_for(request)

    @property
    def position(self) -> int:
        return self._service.position(self)

    @property
    def first_token_eta_s(self) -> float:
        return 0.0 if self.tokens else SWEEP_S * (self.position + 1)

    @property
    def eta_s(self) -> float:
        return self.first_token_eta_s + SWEEP_S * len(self._pieces)

    def cancel(self) -> None:
        self._service.cancel(self)

    def step(self) -> bool:
        """Make one token and tell whether it was the last."""
        text, token = self._pieces[len(self.tokens)]
        self.tokens.append(token)
        self.text += text
        chances = () if self._num_top is None else (chance_of(token, self._num_top),)
        if not self.tokens[1:] and self._scores_prompt:
            rest = [chance_of(int(each), self._num_top or 0) for each in self.request.prompt[1:]]
            self.on_event(PromptScored(chances=tuple(rest)))
        self.on_event(AnswerPart(text=text, tokens=(token,), chances=chances))
        return len(self.tokens) == len(self._pieces)

    def end(self, *, error: Exception | None = None) -> None:
        result = GenerationResult(
            index=0,
            request=self.request,
            prompt_tokens=self.prompt_tokens,
            tokens=tuple(self.tokens),
            text=self.text,
            finish_reason="error" if error else self.finish_reason,
            seed=self.request.seed,
            error=error,
        )
        is_cancelled = self.is_cancelled and error is None
        self.on_event(AnswerEnded(result=result, is_cancelled=is_cancelled, reused_tokens=self.reused_tokens))


class FakeService:
    """Answers without a model; a context manager that closes itself."""

    def __init__(
        self,
        *,
        model_name: str = "fake/tiny",
        context_tokens: int = 256,
        most_running: int = 4,
        most_waiting: int = 64,
        sweeps: float = math.inf,
        replies: Mapping[str, str] | None = None,
        failures: Mapping[str, Exception] | None = None,
        reused: Sequence[int] = (),
    ) -> None:
        """Answer prompts that contain a key of `replies` or `failures` with its value.

        Args:
            model_name: the model's name.
            context_tokens: the size of the context.
            most_running: how many requests share a sweep.
            most_waiting: how many may wait.
            sweeps: how many sweeps may happen; `allow_sweeps` adds more.
            replies: answers to prompts that contain a text.
            failures: errors for prompts that contain a text.
            reused: how many tokens of the prompts were not computed again; 0 for the requests after these.
        """
        self.model_name, self.context_tokens = model_name, context_tokens
        self.tokenizer = fake_tokenizer()
        self.submitted: list[GenerationRequest] = []
        self._reused = list(reused)
        self._replies, self._failures = dict(replies or {}), dict(failures or {})
        self._most_running, self._most_waiting = most_running, most_waiting
        self._sweeps_left = sweeps
        self._changed = threading.Condition(threading.RLock())
        self._waiting: list[FakeTicket] = []
        self._running: list[FakeTicket] = []
        self._counts = dict.fromkeys(("answered", "failed", "cancelled", "prompt", "generated", "sweeps"), 0)
        self.is_closed = False
        self._thread = threading.Thread(target=self._run, name="fake-service")
        self._thread.start()

    def __enter__(self) -> FakeService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        request: GenerationRequest,
        on_event: Callable[[AnswerEvent], object],
        *,
        top_logprobs: int | None = None,
        scores_prompt: bool = False,
    ) -> FakeTicket:
        with self._changed:
            if self.is_closed:
                raise ServiceClosedError("the service is closed")
            if len(request.prompt) + request.max_new_tokens > self.context_tokens:
                raise PlanError("the request can never fit")
            if len(self._waiting) >= self._most_waiting:
                raise QueueFullError("the queue is full", waiting=len(self._waiting), eta_s=7.2)
            number = len(self.submitted) + 1
            ticket = FakeTicket(self, number, request, on_event, top_logprobs, scores_prompt)
            ticket.reused_tokens = self._reused.pop(0) if self._reused else 0
            self.submitted.append(request)
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def status(self) -> ServiceStatus:
        with self._changed:
            return ServiceStatus(
                running=len(self._running),
                waiting=len(self._waiting),
                most_waiting=self._most_waiting,
                answered=self._counts["answered"],
                failed=self._counts["failed"],
                cancelled=self._counts["cancelled"],
                prompt_tokens=self._counts["prompt"],
                generated_tokens=self._counts["generated"],
                sweeps=self._counts["sweeps"],
                sweep_s=SWEEP_S,
                token_s=SWEEP_S,
                tokens_per_s=len(self._running) / SWEEP_S,
                wait_s=SWEEP_S * (len(self._waiting) + 1),
            )

    def close(self, *, drain_s: float = 0.0) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.wait_for(lambda: not self._running, timeout=drain_s)
            for ticket in (*self._waiting, *self._running):
                ticket.is_cancelled = True
            self._changed.notify_all()
        self._thread.join()

    def allow_sweeps(self, number: float) -> None:
        """Let so many more sweeps happen."""
        with self._changed:
            self._sweeps_left += number
            self._changed.notify_all()

    def wait_until(self, holds: Callable[[ServiceStatus], bool]) -> None:
        """Wait until something holds for the status; fail if it does not."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self.status()), timeout=_PATIENCE_S), self.status()

    def position(self, ticket: FakeTicket) -> int:
        with self._changed:
            return self._waiting.index(ticket) + 1 if ticket in self._waiting else 0

    def cancel(self, ticket: FakeTicket) -> None:
        with self._changed:
            ticket.is_cancelled = True
            self._changed.notify_all()

    def pieces_for(self, request: GenerationRequest) -> tuple[list[tuple[str, int]], str]:
        """Return an answer as texts and tokens, and why it ends."""
        prompt = self.tokenizer.decode(list(request.prompt))
        text = next((reply for key, reply in self._replies.items() if key in prompt), prompt[::-1])
        if request.do_sample and request.seed is not None:
            text += f" seed {request.seed}"
        shown = min((at for stop in request.stop if (at := text.find(stop)) >= 0), default=None)
        tokens = [*self.tokenizer(text)["input_ids"], END_TOKEN]
        if shown is not None:
            stop = next(stop for stop in request.stop if text.startswith(stop, shown))
            tokens = tokens[: shown + len(stop)]
        visible = text if shown is None else text[:shown]
        pieces = [(visible[at : at + 1], token) for at, token in enumerate(tokens)]
        pieces = pieces[: request.max_new_tokens]
        return pieces, "stop" if len(pieces) == len(tokens) else "length"

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                gone = [ticket for ticket in (*self._waiting, *self._running) if ticket.is_cancelled]
                if self.is_closed and not gone and not self._running:
                    return
                may_sweep = self._sweeps_left > 0 and not self.is_closed
            for ticket in gone:
                self._leave(ticket, "cancelled")
            if may_sweep:
                self._sweep()

    def _has_work(self) -> bool:
        tickets = (*self._waiting, *self._running)
        if self.is_closed or any(ticket.is_cancelled for ticket in tickets):
            return True
        return bool(tickets) and self._sweeps_left > 0

    def _sweep(self) -> None:
        with self._changed:
            admitted = self._waiting[: self._most_running - len(self._running)]
            del self._waiting[: len(admitted)]
            self._running += admitted
            running = list(self._running)
            if running:
                self._sweeps_left -= 1
                self._counts["sweeps"] += 1
                self._counts["generated"] += len(running)
                self._counts["prompt"] += sum(ticket.prompt_tokens for ticket in admitted)
        for ticket in admitted:
            ticket.on_event(AnswerStarted())
        for ticket in running:
            prompt = self.tokenizer.decode(list(ticket.request.prompt))
            error = next((error for key, error in self._failures.items() if key in prompt), None)
            if error is not None:
                self._leave(ticket, "failed", error)
            elif ticket.step():
                self._leave(ticket, "answered")

    def _leave(self, ticket: FakeTicket, outcome: str, error: Exception | None = None) -> None:
        with self._changed:
            for tickets in (self._waiting, self._running):
                if ticket in tickets:
                    tickets.remove(ticket)
            self._counts[outcome] += 1
            self._changed.notify_all()
        ticket.end(error=error)


def chance_of(token: int, num_top: int) -> TokenChance:
    """Return the chance that the fake gives a token, and the tokens that follow it as the likeliest ones."""
    top = tuple((token + rank, -0.25 * (rank + 1)) for rank in range(num_top))
    return TokenChance(token=token, logprob=-0.25, top=top)


def fake_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 100 tokens: four special ones, and one for each printable ASCII character.

    It needs no model class, so that a server's process starts soon.
    """
    characters = [*_SPECIAL, "\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {character: index for index, character in enumerate(characters)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
