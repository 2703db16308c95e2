"""Turn tokens into text as they come: whole characters only, and nothing of a stop text. No model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..batching.stop_texts import StopFilter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 6
"""So many tokens before the new ones are decoded with them: some tokenizers write a token by its neighbours.
"""


class AnswerText:
    """The text of one answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        """Begin an answer that ends before the first of the texts in `stop`."""
        self._tokenizer = tokenizer
        self._new: list[str] = []
        self._filter = StopFilter(stop, self._new.append)
        self._tokens: list[int] = []
        self._num_decoded = 0

    @property
    def text(self) -> str:
        """What has been given out so far."""
        return self._filter.text

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text has come; nothing follows."""
        return self._filter.has_ended

    def add(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that is certain now."""
        self._tokens += tokens
        self._filter.feed(self._decode(is_last=False))
        return self._take()

    def finish(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        self._filter.feed(self._decode(is_last=True))
        self._filter.end()
        return self._take()

    def _take(self) -> str:
        given = "".join(self._new)
        self._new.clear()
        return given

    def _decode(self, *, is_last: bool) -> str:
        """Return the text of the tokens that have not been decoded, if it ends with a whole character."""
        first = max(0, self._num_decoded - _CONTEXT_TOKENS)
        before = self._as_text(self._tokens[first : self._num_decoded])
        both = self._as_text(self._tokens[first:])
        if both.endswith(_INCOMPLETE) and not is_last:
            return ""
        self._num_decoded = len(self._tokens)
        return both[len(before) :]

    def _as_text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""
