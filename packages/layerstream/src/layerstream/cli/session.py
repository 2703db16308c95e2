"""Answer one prompt with a streamed model, with its text and its progress on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, TextStreamer

from ..architecture.skeleton import read_config
from ..checkpoint.hub import resolve_model
from ..engine.tokenizer import load_tokenizer
from ..errors import PlanError
from ..model import StreamedModel
from ..spec.options import LoadOptions
from ..spec.plans import Granularity
from ..spec.sizes import format_seconds
from ..uses.batching.chat import encode_messages
from ..uses.batching.requests import GenerationRequest
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

    def explain(self) -> str:
        """Return the figures as one line for people."""
        later_tokens = self.new_tokens - 1
        later_s = self.elapsed_s - self.first_token_s
        rate = f", then {format_seconds(later_s / later_tokens)} per token" if later_tokens > 0 else ""
        return (
            f"{self.prompt_tokens} prompt tokens, {self.new_tokens} new tokens: "
            f"the first after {format_seconds(self.first_token_s)}{rate}"
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> list[int]:
    """Return the prompt's tokens; with `chat`, in the checkpoint's chat template.

    Raises:
        PlanError: there is no chat template.
    """
    if chat and not tokenizer.chat_template:
        raise PlanError("this checkpoint's tokenizer has no chat template: leave out --chat")
    if chat:
        return encode_messages(tokenizer, [{"role": "user", "content": prompt}])
    ids: list[int] = tokenizer(prompt)["input_ids"]
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
    """transformers' streamer, which writes through the status line and counts tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        write: Callable[[str], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
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
        self._write(text + ("\n" if stream_end else ""))


def generate_answer(
    streamed: StreamedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: GenerationRequest,
    *,
    shows_text: bool = True,
    shows_progress: bool = True,
) -> Answer:
    """Generate the answer to a request whose prompt is tokens.

    Args:
        streamed: an open model.
        tokenizer: turns the answer into text.
        request: the prompt's tokens and the settings.
        shows_text: write the text to stdout as it comes.
        shows_progress: draw the progress below it.
    """
    plan = streamed.plan
    noun = "block" if plan.granularity is Granularity.BLOCK else "part"
    progress = ProgressTracker(
        num_units=len(plan.units),
        max_new_tokens=request.max_new_tokens,
        predicted_sweep_s=plan.cost.sweep_s,
        predicted_prefill_s=plan.cost.prefill_s,
    )
    input_ids = torch.tensor([request.prompt], device=streamed.model.device)
    if request.seed is not None:
        torch.manual_seed(request.seed)
    unsubscribe = streamed.timeline.subscribe(progress.observe)
    start_s = time.perf_counter()
    try:
        with StatusLine(
            lambda: format_progress(progress.state(time.perf_counter()), noun), shown=shows_progress
        ) as status:
            streamer = _Streamer(tokenizer, status.write if shows_text else _discard, progress.count_tokens)
            rows = streamed.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=request.max_new_tokens,
                streamer=streamer,
                **request.generate_options(),
            )
    finally:
        unsubscribe()
    end_s = time.perf_counter()
    new_tokens = rows[0][len(request.prompt) :]
    return Answer(
        text=str(tokenizer.decode(new_tokens, skip_special_tokens=True)),
        prompt_tokens=len(request.prompt),
        new_tokens=len(new_tokens),
        first_token_s=(streamer.first_token_at_s or end_s) - start_s,
        elapsed_s=end_s - start_s,
    )


def _discard(_: str) -> None:
    """Ignore the text."""
