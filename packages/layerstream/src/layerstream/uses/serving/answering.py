"""Generate one answer on the streamed model, and tell its tokens as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from ...architecture.compat import cache_argument
from ...model import StreamedModel
from ...streaming.scheduler import TaskAbandonedError
from ..batching.packing import keywords_of, left_padded
from .events import TokenChance
from .ticket import Entry


def generate_answer(
    streamed: StreamedModel,
    entry: Entry,
    on_tokens: Callable[[int], object],
    cache: DynamicCache | None = None,
) -> None:
    """Generate the answer to one request with transformers' own `generate()`; runs inside a task.

    Args:
        streamed: the model.
        entry: the request; it tells its listener each token.
        on_tokens: called with the number of new tokens.
        cache: holds the beginning of the prompt, or nothing, and all of it afterwards; None lets
            `generate()` make one.

    Raises:
        TaskAbandonedError: the request was cancelled.
    """
    replica, request = streamed.replicas[0], entry.tokenized.request
    replica.adapters.choose(request.adapter)
    options = keywords_of(request, replica.model, entry.tokenizer)
    recorder = None
    # what records chances sees the draft's logits too, so such answers are generated without it
    generate = streamed.generate
    if entry.top_logprobs is not None:
        recorder, generate = _ChanceRecorder(entry.top_logprobs), replica.model.generate
        own = options.get("logits_processor", ())
        options["logits_processor"] = LogitsProcessorList([*own, recorder])
    if cache is not None:
        options |= cache_argument(replica.model, cache)
    if entry.seed is not None:
        torch.manual_seed(entry.seed)
    inputs = left_padded([entry.tokenized.ids], int(options["pad_token_id"]), replica.model.device)
    entry.start()
    streamer = _Teller(entry, recorder, on_tokens)
    generate(**inputs, max_new_tokens=request.max_new_tokens, streamer=streamer, **options)


class _Teller(BaseStreamer):
    """Passes new tokens on; `generate()` calls it."""

    def __init__(
        self, entry: Entry, recorder: _ChanceRecorder | None, on_tokens: Callable[[int], object]
    ) -> None:
        self._entry, self._recorder, self._on_tokens = entry, recorder, on_tokens
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Tell tokens; the first call brings the prompt's."""
        if self._entry.is_cancelled.is_set():
            raise TaskAbandonedError("the request was cancelled")
        if not self._has_prompt:
            self._has_prompt = True
            return
        tokens: list[int] = value.flatten().tolist()
        chances = [] if self._recorder is None else self._recorder.take(tokens)
        self._on_tokens(len(tokens))
        self._entry.add(tokens, chances)

    def end(self) -> None:
        """Do nothing: the task's end says so."""


class _ChanceRecorder(LogitsProcessor):
    """Notes the logarithms of the probabilities of a step's tokens; it changes nothing.

    transformers runs it before temperature, top-k and top-p.
    """

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Note the step's scores `[1, vocabulary]` and return them."""
        self._logprobs.append(scores[0].float().log_softmax(-1))
        return scores

    def take(self, tokens: Sequence[int]) -> list[TokenChance]:
        """Return the chances of the tokens that these steps have given, and forget the steps."""
        steps, self._logprobs = self._logprobs, []
        return [self._chance(token, step) for token, step in zip(tokens, steps, strict=True)]

    def _chance(self, token: int, logprobs: torch.Tensor) -> TokenChance:
        best = logprobs.topk(min(self._num_top, len(logprobs)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenChance(token=token, logprob=float(logprobs[token]), top=tuple(top))
