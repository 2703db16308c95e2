"""Generate one answer on the streamed model, and tell its tokens as they come."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ...architecture.compat import cache_argument
from ...engine.replica import Replica
from ...model import StreamedModel
from ...planning.scoring_sweeps import SOFTMAX_ROWS
from ...streaming.scheduler import TaskAbandonedError
from ..batching.packing import keywords_of, left_padded
from .events import TokenChance
from .ticket import Entry


def generate_answer(
    streamed: StreamedModel,
    replica: Replica,
    entry: Entry,
    on_tokens: Callable[[int], object],
    cache: DynamicCache | None = None,
) -> None:
    """Generate the answer to one request with transformers' own `generate()`; runs inside a task.

    Args:
        streamed: the model.
        replica: the device to compute on.
        entry: the request; it tells its listener each token.
        on_tokens: called with the number of new tokens.
        cache: holds the beginning of the prompt, or nothing, and all of it afterwards; None lets
            `generate()` make one.

    Raises:
        TaskAbandonedError: the request was cancelled.
    """
    request = entry.tokenized.request
    replica.adapters.choose(request.adapter)
    options = keywords_of(request, replica.model, entry.tokenizer)
    recorder = None
    # a draft works on the first device, which is the only one then
    generate = streamed.generate if replica.index == 0 else replica.model.generate
    # what records chances sees the draft's logits too, so such answers are generated without it
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
    with _scored_prompt(replica.model, entry, options) if entry.scores_prompt else nullcontext():
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
        (chance,) = _chances([token], logprobs[None], self._num_top)
        return chance


def _chances(tokens: Sequence[int], logprobs: torch.Tensor, num_top: int) -> list[TokenChance]:
    """Return the chance of each token in its row of `logprobs`, (tokens, vocabulary)."""
    best = logprobs.topk(min(num_top, logprobs.shape[-1]))
    places = torch.tensor(tokens, dtype=torch.long, device=logprobs.device)[:, None]
    own = logprobs.gather(1, places)[:, 0].tolist()
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenChance(token=token, logprob=logprob, top=tuple(zip(*top, strict=True)))
        for token, logprob, top in zip(tokens, own, tops, strict=True)
    ]


@contextmanager
def _scored_prompt(model: PreTrainedModel, entry: Entry, options: dict[str, Any]) -> Iterator[None]:
    """Let the forward of the prompt compute all its logits; tell the chances that they give, and drop them.

    The head then computes the first new token's logits together with the prompt's, as transformers does with
    `logits_to_keep=0`.
    """
    thread, ids = threading.get_ident(), entry.tokenized.ids

    def read(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != thread:
            return None  # another request's forward
        hook.remove()
        rows = output.logits[0, :-1].split(SOFTMAX_ROWS)
        chances: list[TokenChance] = []
        for logits in rows:
            tokens = ids[len(chances) + 1 : len(chances) + 1 + len(logits)]
            chances += _chances(tokens, logits.float().log_softmax(-1), entry.top_logprobs or 0)
        entry.tell_prompt(chances)
        output.logits = output.logits[:, -1:].clone()
        return output

    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        options["logits_to_keep"] = 0
    hook = model.register_forward_hook(read)
    try:
        yield
    finally:
        hook.remove()
