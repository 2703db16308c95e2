"""Generate one answer of a chat, which can be ended at the next unit; the model goes on afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from ..model import StreamedModel
from ..uses.batching.requests import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """An answer, or as much of it as was said.

    Attributes:
        text: the new text, without special tokens.
        new_tokens: the number of tokens generated.
        first_token_s: seconds to the first one; None if there is none.
        elapsed_s: seconds to the last one.
        is_stopped: it was ended before its end.
    """

    text: str
    new_tokens: int
    first_token_s: float | None
    elapsed_s: float
    is_stopped: bool


class _AnswerStoppedError(Exception):
    """Ends a forward."""


class _Streamer(TextStreamer):
    """transformers' streamer, which passes text on, keeps it, and counts tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        write: Callable[[str], None],
        on_tokens: Callable[[int], None],
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""
        self.num_tokens = 0
        self.token_times_s: list[float] = []
        self._write, self._on_tokens = write, on_tokens

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.num_tokens += value.numel()
            self.token_times_s.append(time.perf_counter())
            self._on_tokens(value.numel())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.text += text
            self._write(text)


def answer_in_chat(
    streamed: StreamedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: GenerationRequest,
    *,
    write: Callable[[str], None],
    on_tokens: Callable[[int], None],
    is_stopped: Callable[[], bool],
) -> ChatAnswer:
    """Generate the answer to a request whose prompt is tokens.

    Args:
        streamed: an open model.
        tokenizer: turns the answer into text.
        request: the prompt's tokens and the settings.
        write: called with each new piece of text.
        on_tokens: called with the number of new tokens.
        is_stopped: asked at every unit whether the answer is to end there.
    """
    streamer = _Streamer(tokenizer, write, on_tokens)
    input_ids = torch.tensor([request.prompt], device=streamed.model.device)
    start_s = time.perf_counter()
    was_stopped = False
    try:
        with _ending_forwards(streamed, is_stopped):
            streamed.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=request.max_new_tokens,
                streamer=streamer,
                **request.generate_options(),
            )
    except _AnswerStoppedError:
        was_stopped = True
        # passes on the text that the streamer has held back
        streamer.end()
    times_s: Sequence[float] = streamer.token_times_s
    return ChatAnswer(
        text=streamer.text,
        new_tokens=streamer.num_tokens,
        first_token_s=times_s[0] - start_s if times_s else None,
        elapsed_s=(times_s[-1] if times_s else time.perf_counter()) - start_s,
        is_stopped=was_stopped,
    )


@contextmanager
def _ending_forwards(streamed: StreamedModel, is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Raise `_AnswerStoppedError` in the next unit once `is_stopped`."""

    def check(*_: Any) -> None:
        if is_stopped():
            raise _AnswerStoppedError

    names = {unit.name for unit in streamed.plan.units}
    units = [module for name, module in streamed.model.named_modules() if name in names]
    # the model itself too, where peft's model around it gives units other names; before the hook that fetches
    # the unit's weights
    hooks = [module.register_forward_pre_hook(check, prepend=True) for module in (streamed.model, *units)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
