"""What is asked and what comes back: one prompt with its own settings, one answer.

Layer: uses. Checks what a request says before anything is run; knows the keywords of transformers' `generate()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import PlanError

_OURS = frozenset(
    {
        *(
            "inputs",
            "input_ids",
            "attention_mask",
            "inputs_embeds",
            "max_new_tokens",
            "max_length",
            "do_sample",
            "temperature",
        ),
        *(
            "num_beams",
            "stop_strings",
            "tokenizer",
            "streamer",
            "num_return_sequences",
            "return_dict_in_generate",
            "generation_config",
        ),
    }
)
_ALONE = frozenset(
    {
        "assistant_model",
        "prompt_lookup_num_tokens",
        "logits_processor",
        "stopping_criteria",
        "past_key_values",
    }
)
"""Keywords that work for one sequence only, or hold state of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to continue it. What is left at None is the checkpoint's own generation config's.

    Attributes:
        prompt: text, or token ids as they are to be used.
        max_new_tokens: tokens at most.
        do_sample: draw tokens; False takes the likeliest.
        seed: of the draws. Requests with seeds of their own do not share a tensor; None draws one from torch's generator.
        temperature: of the draws.
        num_beams: search with that many beams.
        stop: texts that end the answer; the answer contains the one that ended it.
        options: any other keywords of transformers' `generate()`, such as `top_p` or `repetition_penalty`.
    """

    prompt: str | Sequence[int]
    max_new_tokens: int = 128
    do_sample: bool = False
    seed: int | None = None
    temperature: float | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not len(self.prompt):
            raise PlanError("the prompt is empty: give text, or at least one token id")
        if not isinstance(self.prompt, str) and not all(
            type(token) is int and token >= 0 for token in self.prompt
        ):
            raise PlanError("a prompt is text, or a sequence of token ids (ints from 0 up)")
        for name, value, least in (
            ("max_new_tokens", self.max_new_tokens, 1),
            ("num_beams", self.num_beams, 1),
        ):
            if type(value) is not int or value < least:
                raise PlanError(f"{name} must be a whole number from {least} up; got {value!r}")
        if self.temperature is not None and not (self.do_sample and self.temperature > 0):
            raise PlanError(f"temperature {self.temperature!r} needs do_sample=True and must be above 0")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise PlanError(f"a seed is a whole number from 0 up; got {self.seed!r}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise PlanError(f"stop is a tuple of texts, none of them empty; got {self.stop!r}")
        if taken := sorted(_OURS & set(self.options)):
            raise PlanError(
                f"options cannot hold {', '.join(taken)}: a request has fields for what it decides, the rest is not its own"
            )

    @property
    def is_alone(self) -> bool:
        """Whether it cannot share a tensor with others."""
        return bool(_ALONE & set(self.options))

    def generate_options(self) -> dict[str, Any]:
        """Return the keywords for `generate()`, without prompt and lengths; greedy switches the checkpoint's own draws off."""
        chosen: dict[str, Any] = {"do_sample": self.do_sample, "num_beams": self.num_beams}
        if not self.do_sample:
            chosen |= {"temperature": None, "top_p": None, "top_k": None}
        elif self.temperature is not None:
            chosen["temperature"] = self.temperature
        if self.stop:
            chosen["stop_strings"] = list(self.stop)
        return chosen | dict(self.options)

    def kind(self) -> tuple[Any, ...]:
        """Return what must be equal in requests that share a tensor."""
        # beam search looks at the length it may reach; other ways stop early without a trace
        length = self.max_new_tokens if self.num_beams > 1 else None
        seed = self.seed if self.do_sample else None
        options = tuple(sorted((name, repr(value)) for name, value in self.options.items()))
        return self.do_sample, seed, self.temperature, self.num_beams, length, self.stop, options


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """One answer.

    Attributes:
        index: the request's place among those given.
        request: what was asked.
        prompt_tokens: of the prompt, without padding.
        tokens: of the answer, with the token that ended it and without padding.
        text: the answer as text without special tokens; None where no tokenizer was there.
        finish_reason: `"stop"` (an end token or a stop text), `"length"`, or `"error"`.
        seed: what was drawn from; None when nothing was drawn.
        error: why there is no answer; None when there is.
    """

    index: int
    request: GenerationRequest
    prompt_tokens: int
    tokens: tuple[int, ...] = ()
    text: str | None = None
    finish_reason: str = "error"
    seed: int | None = None
    error: Exception | None = None
