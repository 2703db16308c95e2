"""Answer one prompt with a streamed model, with its text and its progress on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from ..architecture.skeleton import read_config
from ..checkpoint.hub import resolve_model
from ..engine.tokenizer import load_tokenizer
from ..errors import PlanError
from ..model import StreamedModel
from ..spec.options import LoadOptions
from ..spec.plans import Granularity, PlacementPlan
from ..spec.sizes import format_seconds
from ..uses.batching.chat import encode_messages
from ..uses.batching.requests import GenerationRequest
from ..uses.batching.stop_texts import StopFilter
from .interrupts import kept_if_interrupted
from .progress import ProgressTracker, format_progress
from .terminal import StatusLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A generated answer.

    Attributes:
        text: the new text, without special tokens.
        prompt_tokens: the number of tokens of the prompt.
        new_tokens: the number of tokens generated.
        first_token_s: seconds to the first one.
        elapsed_s: seconds to the last one.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    elapsed_s: float

    @property
    def later_token_s(self) -> float:
        """Seconds for each token after the first; 0 if there is none."""
        later_tokens = self.new_tokens - 1
        return (self.elapsed_s - self.first_token_s) / later_tokens if later_tokens > 0 else 0.0

    def explain(self) -> str:
        """Return the figures as one line for people."""
        rate = f", then {format_seconds(self.later_token_s)} per token" if self.later_token_s else ""
        return (
            f"{self.prompt_tokens} prompt tokens, {self.new_tokens} new tokens: "
            f"the first after {format_seconds(self.first_token_s)}{rate}"
        )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool, system: str | None = None
) -> list[int]:
    """Return the prompt's tokens; with `chat`, in the checkpoint's chat template, below the text `system`.

    Raises:
        PlanError: there is no chat template, or it takes no system message.
    """
    if chat and not tokenizer.chat_template:
        raise PlanError("this checkpoint's tokenizer has no chat template: leave out --chat")
    if chat:
        messages = [{"role": "user", "content": prompt}]
        return encode_messages(tokenizer, messages) if system is None else _below(system, messages, tokenizer)
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return ids


def _below(system: str, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of `messages` below a system message, unless the template refuses or ignores one."""
    advice = "put it at the beginning of the prompt, and leave out --system"
    below, below_another = (
        [{"role": "system", "content": text}, *messages] for text in (system, f"{system} And more.")
    )
    try:
        ids = encode_messages(tokenizer, below)
    except PlanError as error:
        raise PlanError(f"{error}. It may take no system message: {advice}") from error
    if ids == encode_messages(tokenizer, below_another):
        raise PlanError(f"this checkpoint's chat template ignores the system message: {advice}")
    return ids


def load_text_parts(model: str, options: LoadOptions) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Return the checkpoint's tokenizer and the config of its decoder.

    Raises:
        CheckpointError, ModelError: one of them cannot be read.
    """
    tokenizer = load_tokenizer(model, options)
    config = read_config(resolve_model(model, options, weights=False), options)
    return tokenizer, config.get_text_config(decoder=True)


class _Streamer(TextStreamer):
    """transformers' streamer, which writes through the status line up to a stop text, and counts tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: tuple[str, ...],
        write: Callable[[str], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.filter = StopFilter(stop, write)
        self._write = write
        self._on_tokens = on_tokens
        self.first_token_at_s: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            if self.first_token_at_s is None:
                self.first_token_at_s = time.perf_counter()
            self._on_tokens(value.numel())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.filter.feed(text)
        if stream_end:
            self.filter.end()
            self._write("\n")


class _HasStopText(StoppingCriteria):
    """Ends the answer when it contains a stop text: after the token that completes it.

    transformers' own criterion also finds texts that begin in the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], prompt_tokens: int) -> None:
        self._tokenizer, self._stop, self._prompt_tokens = tokenizer, stop, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        answer = input_ids[0, self._prompt_tokens :]
        # a stop text may be a special token, and special tokens may stand in the middle of one
        texts = [self._tokenizer.decode(answer, skip_special_tokens=skips) for skips in (False, True)]
        has_stop_text = any(stop_text in text for stop_text in self._stop for text in texts)
        return torch.full((input_ids.shape[0],), has_stop_text, device=input_ids.device)


def generate_answer(
    streamed: StreamedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: GenerationRequest,
    *,
    shows_text: bool = True,
    shows_progress: bool = True,
) -> Answer:
    """Generate the answer to a request whose prompt is tokens. It ends before the request's stop texts.

    Args:
        streamed: an open model.
        tokenizer: turns the answer into text.
        request: the prompt's tokens and the settings.
        shows_text: write the text to stdout as it comes.
        shows_progress: draw the progress below it.
    """
    progress = _progress_of(streamed, request)
    input_ids = torch.tensor([request.prompt], device=streamed.model.device)
    if request.seed is not None:
        torch.manual_seed(request.seed)
    unsubscribe = streamed.timeline.subscribe(progress.observe)
    start_s = time.perf_counter()
    try:
        with (
            kept_if_interrupted(partial(_kept_of_answer, progress)),
            StatusLine(partial(_progress_line, progress, streamed.plan), shown=shows_progress) as status,
            _ending_the_line(shown=shows_text),
        ):
            streamer = _Streamer(
                tokenizer, request.stop, status.write if shows_text else _discard, progress.count_tokens
            )
            rows = streamed.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=request.max_new_tokens,
                streamer=streamer,
                **_generate_options(request, tokenizer),
            )
    finally:
        unsubscribe()
    end_s = time.perf_counter()
    new_tokens = rows[0][len(request.prompt) :]
    text = str(tokenizer.decode(new_tokens, skip_special_tokens=True))
    return Answer(
        text=streamer.filter.text if request.stop else text,
        prompt_tokens=len(request.prompt),
        new_tokens=len(new_tokens),
        first_token_s=(streamer.first_token_at_s or end_s) - start_s,
        elapsed_s=end_s - start_s,
    )


def _progress_of(streamed: StreamedModel, request: GenerationRequest) -> ProgressTracker:
    cost = streamed.plan.cost
    return ProgressTracker(
        num_units=len(streamed.plan.units),
        max_new_tokens=request.max_new_tokens,
        predicted_sweep_s=cost.sweep_s,
        predicted_prefill_s=cost.prefill_s,
    )


def _progress_line(progress: ProgressTracker, plan: PlacementPlan) -> str:
    noun = "block" if plan.granularity is Granularity.BLOCK else "part"
    return format_progress(progress.state(time.perf_counter()), noun)


@contextmanager
def _ending_the_line(*, shown: bool) -> Iterator[None]:
    """End the line of an answer that is cut off; on a terminal, that is done after the ^C."""
    try:
        yield
    except KeyboardInterrupt:
        if shown and not sys.stdout.isatty():
            sys.stdout.write("\n")
        raise


def _kept_of_answer(progress: ProgressTracker) -> str:
    state = progress.state(time.perf_counter())
    return f"the answer was cut off after {state.tokens} of at most {state.max_new_tokens} tokens"


def _generate_options(request: GenerationRequest, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    options = request.generate_options()
    if options.pop("stop_strings", None):
        criterion = _HasStopText(tokenizer, request.stop, len(request.prompt))
        options["stopping_criteria"] = StoppingCriteriaList([criterion])
    return options


def _discard(_: str) -> None:
    """Ignore the text."""
