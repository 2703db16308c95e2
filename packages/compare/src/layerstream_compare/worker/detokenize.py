"""Split an answer into the text of each token; the pieces together are the whole text. Runs in the worker."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a decoder returns for a character whose last bytes are still missing."""


class Detokenizer:
    """Turns tokens into text one by one. Special tokens have no text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start before the first token."""
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._emitted = ""

    def push(self, token_id: int) -> str:
        """Return what `token_id` adds to the text; nothing while a character is incomplete."""
        self._token_ids.append(token_id)
        text = decode(self._tokenizer, self._token_ids)
        if text.endswith(_INCOMPLETE):
            return ""
        added, self._emitted = text[len(self._emitted) :], text
        return added

    def finish(self) -> str:
        """Return the rest of the text: a character that stayed incomplete."""
        return decode(self._tokenizer, self._token_ids)[len(self._emitted) :]


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int]) -> list[str]:
    """Return the text of each token; a character that stays incomplete at the end belongs to the last one."""
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push(token_id) for token_id in token_ids]
    if texts:
        texts[-1] += detokenizer.finish()
    return texts


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int]) -> str:
    """Return the text of `token_ids` without special tokens."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)
