"""Turn a case's prompt into tokens, identically for every variant. Runs in the worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..case import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        token_ids: int64, shape [1, tokens], on the CPU.
        messages: the chat or text that a pipeline tokenizes to the same ids; None if the prompt was cut or
            repeated.
    """

    token_ids: torch.Tensor
    messages: list[dict[str, str]] | str | None

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return int(self.token_ids.shape[1])


def build_prompt(tokenizer: PreTrainedTokenizerBase, case: Case) -> Prompt:
    """Return the case's prompt, in the chat template if there is one, resized to `prompt_tokens` if set.

    Raises:
        ValueError: the text has no tokens.
    """
    messages: list[dict[str, str]] | str = case.prompt
    if case.chat and tokenizer.chat_template:
        messages = [{"role": "user", "content": case.prompt}]
        token_ids = _ids(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        )
    else:
        token_ids = _ids(tokenizer(case.prompt))
    if not token_ids:
        raise ValueError("the prompt has no tokens; give some text")
    if not case.prompt_tokens:
        return Prompt(token_ids=torch.tensor([token_ids]), messages=messages)
    content = _ids(tokenizer(case.prompt, add_special_tokens=False))
    return Prompt(token_ids=torch.tensor([resize(token_ids, content, case.prompt_tokens)]), messages=None)


def resize(token_ids: list[int], content: list[int], num_tokens: int) -> list[int]:
    """Return `token_ids` resized to `num_tokens` by repeating and cutting the part `content`.

    The tokens around the content (the chat template) stay. If there is no room for them, or the content is
    not found, the whole prompt is repeated and cut.
    """
    starts = [
        at for at in range(len(token_ids) - len(content) + 1) if token_ids[at : at + len(content)] == content
    ]
    if not starts or not content or num_tokens <= len(token_ids) - len(content):
        return _fill(token_ids, num_tokens)
    head, tail = token_ids[: starts[0]], token_ids[starts[0] + len(content) :]
    return head + _fill(content, num_tokens - len(head) - len(tail)) + tail


def _fill(tokens: list[int], num_tokens: int) -> list[int]:
    return (tokens * (num_tokens // len(tokens) + 1))[:num_tokens]


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded["input_ids"]]
