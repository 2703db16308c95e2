"""Open targets and drafts, and generate: tokens, sweeps and seconds of one answer."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import layerstream as ls
from layerstream.engine.inspect import inspect_model
from layerstream.engine.quantized_copy import quantized_copy
from layerstream.spec.options import LoadOptions, OwnCopy
from layerstream.streaming.runtime import TorchRuntime
from speculation_steps.job import ASSISTANT_TOKENS


class Clock(BaseStreamer):
    """Notes when tokens come, and how many; the first are the prompt's."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self.heard: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        """Note tokens."""
        self.heard.append((perf_counter(), value.numel()))

    def end(self) -> None:
        """Do nothing."""


class Assistant:
    """The target's own copy with 8 bits, as transformers' `assistant_model=`, and the seconds it takes."""

    def __init__(self, model: Path) -> None:
        """Make the copy, and let it draft a fixed number of tokens, however unsure it is."""
        self.model = own_copy(model, OwnCopy.INT8)
        self.draft_s = 0.0
        self._begun_s = 0.0
        config = self.model.generation_config or GenerationConfig()
        config.num_assistant_tokens = ASSISTANT_TOKENS
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        self.model.generation_config = config
        self.model.register_forward_pre_hook(self._begin)
        self.model.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._begun_s = perf_counter()

    def _end(self, *_: object) -> None:
        self.draft_s += perf_counter() - self._begun_s


def own_copy(model: Path, kind: OwnCopy) -> PreTrainedModel:
    """Return the model with few bits, as `load` makes it for a draft on a CPU."""
    spec = inspect_model(str(model), LoadOptions(dtype="bfloat16"), on_host=True)
    return quantized_copy(spec, kind, TorchRuntime(torch.device("cpu")))


def generate(
    streamed: ls.StreamedModel, prompt: list[int], new_tokens: int, assistant: Assistant | None = None
) -> dict[str, Any]:
    """Return what one greedy answer took.

    Args:
        streamed: the target, with or without a draft of its own.
        prompt: the tokens before it.
        new_tokens: the most tokens of the answer.
        assistant: what drafts by transformers' own method.

    Returns:
        `ids`; `seconds`; `first_s` until the first tokens, and `first_tokens`, their number; `sweeps`, the
        prompt's among them; `bytes_read`; `draft_s`; and `speculation`, the report's part.
    """
    ids, clock = torch.tensor([prompt]), Clock()
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False, "streamer": clock}
    if assistant is not None:
        settings["assistant_model"] = assistant.model
        assistant.draft_s = 0.0
    streamed.reset_report()
    start_s = perf_counter()
    rows = streamed.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    seconds = perf_counter() - start_s
    report = streamed.report()
    speculation = report.speculation
    first_s, first_tokens = clock.heard[1]
    own_draft_s = 0.0 if speculation is None else speculation.draft_s
    return {
        "ids": rows[0, len(prompt) :].tolist(),
        "seconds": seconds,
        "first_s": first_s - start_s,
        "first_tokens": first_tokens,
        # the report counts the forwards that share a sweep, where the target is resident
        "sweeps": report.sweeps if speculation is None else 1 + speculation.sweeps,
        "bytes_read": report.bytes_read,
        "draft_s": own_draft_s if assistant is None else assistant.draft_s,
        "speculation": None if speculation is None else speculation.to_dict(),
    }


def tokens_per_sweep(found: list[dict[str, Any]]) -> float:
    """Return the tokens of these answers per sweep.

    With a draft of layerstream's, the prompt's sweep and its token are left out, in which nothing is drafted.
    transformers drafts for that sweep too.
    """
    tokens = sweeps = 0
    for each in found:
        speculation = each["speculation"]
        tokens += len(each["ids"]) if speculation is None else speculation["tokens"]
        sweeps += each["sweeps"] if speculation is None else speculation["sweeps"]
    return tokens / sweeps if sweeps else 0.0


def tokens_per_any_sweep(found: list[dict[str, Any]]) -> float:
    """Return the tokens of these answers per sweep, the prompts' sweeps among them."""
    return sum(len(each["ids"]) for each in found) / sum(each["sweeps"] for each in found)


def later_token_s(found: dict[str, Any]) -> float:
    """Return the seconds per token after the first ones, which come with the prompt's sweep."""
    return float((found["seconds"] - found["first_s"]) / max(1, len(found["ids"]) - found["first_tokens"]))
