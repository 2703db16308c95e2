"""A case: one variant of one model on one prompt, as plain data that crosses a process boundary.

No torch, no layerstream.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The work of one worker process.

    Attributes:
        model: directory or Hub id.
        variant: registered name of the weights variant, such as `streamed` or `bnb-nf4`.
        attention: `default`, or the registered name of an attention variant, such as `eager` or `sdpa-math`.
        prompt: the user's text.
        chat: apply the tokenizer's chat template.
        prompt_tokens: repeat or cut the prompt to this many tokens; 0 leaves it unchanged.
        max_new_tokens: tokens to generate, greedily.
        dtype: torch's name of the unquantized dtype; `auto` keeps the checkpoint's.
        device: torch device string; `auto` is the accelerator if there is one.
        budget: device memory for the `streamed` variant, in any form `layerstream.load` accepts; on a CPU
            all of its memory.
        host_budget: host memory for the `streamed` variant on an accelerator, in the same forms. On a CPU it
            has no effect.
        quality: measure agreement with the exact reference on the reference's own answer.
        prose: with `quality`, also measure agreement on the prose that ships with this package. On a slow CPU
            this takes longer than everything else together.
        threads: torch threads; 0 keeps torch's default.
        warmup_tokens: tokens generated once before measuring.
        time_limit_s: the worker is killed after this many seconds.
        round: number of the repetition, from 0.
        timeline: `streamed` variant only: emit a `plan` event and, during generation, `spans` events with
            what was read, copied, computed and waited for, and with a draft `verified` events. Emitting them
            adds slightly to the measured time.
        draft: `streamed` variant only: what proposes tokens, in any form `layerstream.load` accepts; empty
            for nothing. The tokens are the same, sooner.
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
    host_budget: str = "min"
    quality: bool = True
    prose: bool = False
    threads: int = 0
    warmup_tokens: int = 2
    time_limit_s: float = 1800.0
    round: int = 0
    timeline: bool = False
    draft: str = ""

    @property
    def key(self) -> str:
        """Hash of all fields: resuming a run looks up finished cases by it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Display name: the variant, then attention, prompt length and draft unless they are the defaults."""
        parts = [self.variant]
        if self.attention != "default":
            parts.append(self.attention)
        if self.prompt_tokens:
            parts.append(f"{self.prompt_tokens} tokens")
        if self.draft:
            parts.append(f"{self.draft} draft")
        return " · ".join(parts)

    def to_json(self) -> str:
        """Return the case as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Return the case that `to_json` wrote."""
        return cls(**json.loads(text))

    def with_changes(self, **changes: Any) -> Case:
        """Return a copy of this case with some fields changed."""
        return replace(self, **changes)
