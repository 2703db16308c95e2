"""The prompt of a case as tokens, the same for every variant.

Worker's side. It knows tokenizers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..case import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt, ready to run.

    Attributes:
        token_ids: int64, shape [1, tokens], on the CPU.
        messages: what a pipeline makes the same tokens of: a chat or a text; None when the prompt was cut or repeated.
    """

    token_ids: torch.Tensor
    messages: list[dict[str, str]] | str | None

    @property
    def num_tokens(self) -> int:
        """How many."""
        return int(self.token_ids.shape[1])


def build_prompt(tokenizer: PreTrainedTokenizerBase, case: Case) -> Prompt:
    """Return the prompt of `case`: the chat template around the text where asked and there is one; cut or repeated where asked.

    Raises:
        ValueError: the text makes no token.
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
        raise ValueError("the prompt makes no token; give a text")
    if not case.prompt_tokens:
        return Prompt(token_ids=torch.tensor([token_ids]), messages=messages)
    content = _ids(tokenizer(case.prompt, add_special_tokens=False))
    return Prompt(token_ids=torch.tensor([resize(token_ids, content, case.prompt_tokens)]), messages=None)


def resize(token_ids: list[int], content: list[int], num_tokens: int) -> list[int]:
    """Return `token_ids` with its part `content` repeated and cut so that the whole has `num_tokens` tokens.

    What stands around the content (a chat template) stays; where there is no room for it, or the content is not found, the whole is
    repeated and cut.
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
