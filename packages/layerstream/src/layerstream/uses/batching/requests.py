"""Generation requests and results: a prompt with its own settings, and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import PlanError
from .chat import Message, check_messages

_RESERVED_OPTIONS = frozenset(
    {
        "attention_mask",
        "do_sample",
        "generation_config",
        "input_ids",
        "inputs",
        "inputs_embeds",
        "max_length",
        "max_new_tokens",
        "num_beams",
        "num_return_sequences",
        "return_dict_in_generate",
        "stop_strings",
        "streamer",
        "temperature",
        "tokenizer",
    }
)
"""Keywords of `generate()` that a request has fields for, or that layerstream sets."""

_SINGLE_SEQUENCE_OPTIONS = frozenset(
    {
        "assistant_model",
        "cache",
        "logits_processor",
        "past_key_values",
        "prompt_lookup_num_tokens",
        "stopping_criteria",
    }
)
"""Keywords that work for one sequence only, or hold the state of one."""


def sampling_settings(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Return the keywords of a request that samples if a temperature or `top_p` is given.

    Args:
        temperature: above 0.
        top_p: sample from the likeliest tokens that together have this probability.
    """
    return {
        "do_sample": temperature is not None or top_p is not None,
        "temperature": temperature,
        "options": {} if top_p is None else {"top_p": top_p},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to continue it. The checkpoint's generation config fills in what is not given.

    Attributes:
        prompt: text, or token ids that are used as they are.
        messages: a conversation in place of a prompt: turns with a `role` and a `content`, which the
            tokenizer's chat template turns into a prompt for the next answer.
        max_new_tokens: the maximum number of new tokens.
        do_sample: sample; False takes the likeliest token.
        seed: the seed for sampling. Requests with different seeds do not share a tensor. Without one, torch's
            generator supplies it.
        temperature: the temperature for sampling.
        num_beams: beams of a beam search; 1 turns beam search off.
        stop: texts that end the answer; the answer includes the one that ended it.
        adapter: the adapter to answer with, by its name in `load(adapter=…)`; `"base"` is the model without
            one, and None the active one. Requests with different adapters share sweeps, but no tensor.
        options: any other keywords of transformers' `generate()`, such as `top_p` or `repetition_penalty`.
    """

    prompt: str | Sequence[int] = ""
    messages: Sequence[Message] = ()
    max_new_tokens: int = 128
    do_sample: bool = False
    seed: int | None = None
    temperature: float | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    adapter: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        self._check_prompt()
        for name, value in (("max_new_tokens", self.max_new_tokens), ("num_beams", self.num_beams)):
            if type(value) is not int or value < 1:
                raise PlanError(f"{name} must be an integer of at least 1; got {value!r}")
        if self.temperature is not None and not (self.do_sample and self.temperature > 0):
            raise PlanError(f"temperature {self.temperature!r} needs do_sample=True and must be above 0")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise PlanError(f"seed must be an integer of at least 0; got {self.seed!r}")
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise PlanError(f"adapter must be the name of an adapter; got {self.adapter!r}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise PlanError(f"stop must be a tuple of texts, none of them empty; got {self.stop!r}")
        if reserved := sorted(_RESERVED_OPTIONS & set(self.options)):
            raise PlanError(
                f"options cannot hold {', '.join(reserved)}: use the request's own fields, or leave them out"
            )

    def _check_prompt(self) -> None:
        if self.messages != ():
            if len(self.prompt):
                raise PlanError("a request has both a prompt and messages: leave out one of them")
            check_messages(self.messages)
            return
        if not len(self.prompt):
            raise PlanError("the prompt is empty: give text, at least one token id, or messages")
        if not isinstance(self.prompt, str) and not all(
            type(token) is int and token >= 0 for token in self.prompt
        ):
            raise PlanError("a prompt is text, or a sequence of token ids (integers from 0)")

    @property
    def has_text(self) -> bool:
        """Whether a tokenizer is needed to run it."""
        return isinstance(self.prompt, str) or bool(self.stop)

    @property
    def is_alone(self) -> bool:
        """Whether the request cannot share a tensor with others."""
        return bool(_SINGLE_SEQUENCE_OPTIONS & set(self.options))

    def generate_options(self) -> dict[str, Any]:
        """Return the keywords for `generate()`, except prompt and lengths.

        A request that does not sample also turns the checkpoint's own sampling settings off.
        """
        chosen: dict[str, Any] = {"do_sample": self.do_sample, "num_beams": self.num_beams}
        if not self.do_sample:
            chosen |= {"temperature": None, "top_p": None, "top_k": None}
        elif self.temperature is not None:
            chosen["temperature"] = self.temperature
        if self.stop:
            chosen["stop_strings"] = list(self.stop)
        return chosen | dict(self.options)

    def kind(self) -> tuple[Any, ...]:
        """Return a key that is equal for requests that may share a tensor."""
        # A beam search depends on the length it may reach; other ways of generating can just be cut off.
        length = self.max_new_tokens if self.num_beams > 1 else None
        seed = self.seed if self.do_sample else None
        options = tuple(sorted((name, repr(value)) for name, value in self.options.items()))
        settings = (self.do_sample, seed, self.temperature, self.num_beams, length)
        return *settings, self.stop, self.adapter, options


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """One answer.

    Attributes:
        index: the request's place among the requests.
        request: the request.
        prompt_tokens: the number of tokens of the prompt, without padding.
        tokens: the answer's tokens, including the one that ended it, without padding.
        text: the answer as text, without special tokens; None if there was no tokenizer.
        finish_reason: `"stop"` (an end token or a stop text), `"length"`, or `"error"`.
        seed: the seed it was sampled with; None without sampling.
        error: why there is no answer; None if there is one.
    """

    index: int
    request: GenerationRequest
    prompt_tokens: int
    tokens: tuple[int, ...] = ()
    text: str | None = None
    finish_reason: str = "error"
    seed: int | None = None
    error: Exception | None = None
