"""One prompt through a streamed model, with its text and its progress on the terminal.

Room: surfaces. Shared by `run` and `trace`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, TextStreamer

from .. import StreamedModel
from ..errors import PlanError
from ..spec.plans import Granularity
from ..spec.sizes import format_seconds
from .progress import ProgressLine, format_progress
from .terminal import StatusLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: tokens at most.
        temperature: None is greedy.
        seed: makes sampling repeatable; None leaves torch's state as it is.
    """

    max_new_tokens: int
    temperature: float | None = None
    seed: int | None = None

    def generate_options(self) -> dict[str, Any]:
        """Return the keywords for transformers' `generate()`; greedy switches the checkpoint's own sampling settings off."""
        if self.temperature is None:
            chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        else:
            chosen = {"do_sample": True, "temperature": self.temperature}
        return {"max_new_tokens": self.max_new_tokens, **chosen}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        text: the new text, without special tokens.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens generated.
        first_token_s: seconds to the first one.
        elapsed_s: seconds in all.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    elapsed_s: float

    def explain(self) -> str:
        """Return the figures as one line for people."""
        later = self.new_tokens - 1
        rest_s = self.elapsed_s - self.first_token_s
        rate = f", then {format_seconds(rest_s / later)} each" if later > 0 else ""
        first = format_seconds(self.first_token_s)
        return f"{self.new_tokens} tokens after {self.prompt_tokens} of the prompt: the first after {first}{rate}"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> BatchEncoding:
    """Return the prompt as `input_ids` and `attention_mask`, one row each; with `chat` in the checkpoint's chat template.

    Raises:
        PlanError: when there is no chat template.
    """
    if not chat:
        return tokenizer(prompt, return_tensors="pt")
    if not tokenizer.chat_template:
        raise PlanError("this checkpoint's tokenizer has no chat template: leave --chat out")
    turn = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


class _Streamer(TextStreamer):
    """transformers' streamer, writing through the status line and counting tokens."""

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


def answer(
    streamed: StreamedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: BatchEncoding,
    *,
    sampling: Sampling,
    shows_text: bool = True,
    shows_progress: bool = True,
) -> Answer:
    """Generate, writing the text to stdout as it comes (`shows_text`) and the progress below it (`shows_progress`)."""
    plan = streamed.plan
    noun = "block" if plan.granularity is Granularity.BLOCK else "part"
    progress = ProgressLine(
        num_units=len(plan.units),
        max_new_tokens=sampling.max_new_tokens,
        predicted_sweep_s=plan.cost.sweep_s,
        predicted_prefill_s=plan.cost.prefill_s,
    )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    stop_listening = streamed.timeline.subscribe(progress.observe)
    start_s = time.perf_counter()
    try:
        with StatusLine(
            lambda: format_progress(progress.state(time.perf_counter()), noun), shown=shows_progress
        ) as status:
            streamer = _Streamer(tokenizer, status.write if shows_text else _discard, progress.count_tokens)
            placed = inputs.to(streamed.model.device)
            rows = streamed.generate(**placed, streamer=streamer, **sampling.generate_options())
    finally:
        stop_listening()
    end_s = time.perf_counter()
    prompt_tokens = int(inputs["input_ids"].shape[1])
    fresh = rows[0][prompt_tokens:]
    return Answer(
        text=str(tokenizer.decode(fresh, skip_special_tokens=True)),
        prompt_tokens=prompt_tokens,
        new_tokens=len(fresh),
        first_token_s=(streamer.first_token_at_s or end_s) - start_s,
        elapsed_s=end_s - start_s,
    )


def _discard(text: str) -> None:
    """Take text that nobody wants to see yet."""
