"""The text of each new token, so that the pieces put together are the whole answer.

Worker's side. It knows tokenizers only.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "�"
"""What a decoder puts for a character whose later bytes are still to come."""


class TokenTexts:
    """Tokens as text, one after another; special tokens have none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start before the first token."""
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._shown = ""

    def push(self, token_id: int) -> str:
        """Return what `token_id` adds to the text; nothing while a character is not complete."""
        self._token_ids.append(token_id)
        whole = self.whole(self._token_ids)
        if whole.endswith(_UNFINISHED):
            return ""
        added, self._shown = whole[len(self._shown) :], whole
        return added

    def pieces(self, token_ids: Iterable[int]) -> list[str]:
        """Return the text of each of `token_ids`; what stays incomplete at the end goes to the last."""
        texts = TokenTexts(self._tokenizer)
        pieces = [texts.push(token_id) for token_id in token_ids]
        if pieces:
            pieces[-1] += texts.whole(texts._token_ids)[len(texts._shown) :] if not pieces[-1] else ""
        return pieces

    def whole(self, token_ids: Iterable[int]) -> str:
        """Return the text of `token_ids`, special tokens left out."""
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)
