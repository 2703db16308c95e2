"""A case: one variant of one model on one prompt, as plain data that crosses a process boundary.

Words of this package: no torch, no layerstream. The parent process knows cases and measurements and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one worker process runs.

    Attributes:
        model: directory or Hub id.
        variant: the registered name of the weights' variant, such as `streamed` or `bnb-nf4`.
        attention: `default`, or the registered name of an attention variant, such as `eager` or `sdpa-math`.
        prompt: the user's text.
        chat: apply the tokenizer's chat template.
        prompt_tokens: repeat or cut the prompt to this many tokens; 0 leaves it as it is.
        max_new_tokens: tokens to generate, greedily.
        dtype: torch's name of the unquantized dtype; `auto` keeps the checkpoint's.
        device: torch device string; `auto` is the accelerator if there is one.
        budget: memory for the `streamed` variant, as `layerstream.load` takes it.
        quality: measure agreement with the exact reference, on the reference's own answer.
        prose: and on the prose that ships with this package, which takes longer than all the rest on a slow CPU.
        threads: torch threads; 0 leaves torch's choice.
        warmup_tokens: tokens generated once before measuring.
        time_limit_s: the worker is ended after this many seconds.
        round: of repeated, interleaved measurements.
        timeline: of the `streamed` variant: tell, while it generates, where every unit lives (a `plan` event) and what was read,
            copied, computed and waited for (`spans` events). Telling costs a little of the time that is measured.
    """

    model: str
    variant: str
    attention: str = "default"
    prompt: str = ""
    chat: bool = True
    prompt_tokens: int = 0
    max_new_tokens: int = 60
    dtype: str = "auto"
    device: str = "auto"
    budget: str = "min"
    quality: bool = True
    prose: bool = True
    threads: int = 0
    warmup_tokens: int = 2
    time_limit_s: float = 1800.0
    round: int = 0
    timeline: bool = False

    @property
    def key(self) -> str:
        """A name that is the same for the same case and differs for any other: what resuming goes by."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The case's name for people: variant, attention where chosen, prompt length where chosen."""
        parts = [self.variant]
        if self.attention != "default":
            parts.append(self.attention)
        if self.prompt_tokens:
            parts.append(f"{self.prompt_tokens} tokens")
        return " · ".join(parts)

    def to_json(self) -> str:
        """Return the case as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Return the case that `to_json` wrote."""
        return cls(**json.loads(text))

    def with_changes(self, **changes: Any) -> Case:
        """Return this case with some fields changed."""
        return replace(self, **changes)
