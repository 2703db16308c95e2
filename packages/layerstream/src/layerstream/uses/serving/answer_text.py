"""Turn tokens into text as they come: whole characters only, and nothing of a stop text. No model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 6
"""So many tokens before the new ones are decoded with them: some tokenizers write a token by its neighbours.
"""


class AnswerText:
    """The text of one answer.

    Attributes:
        text: what has been given out so far.
        is_stopped: a stop text has come; nothing follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        """Begin an answer that ends before the first of the texts in `stop`."""
        self.text = ""
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._num_decoded = 0
        self._held = ""

    def add(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that is certain now."""
        self._tokens += tokens
        return self._give(self._decode(is_last=False), is_last=False)

    def finish(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        return self._give(self._decode(is_last=True), is_last=True)

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

    def _give(self, new: str, *, is_last: bool) -> str:
        """Return what of the held and the new text can no longer belong to a stop text."""
        if self.is_stopped:
            return ""
        self._held += new
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            given, self._held = self._held[: min(found)], ""
        else:
            length = len(self._held) - (0 if is_last else self._num_held_back())
            given, self._held = self._held[:length], self._held[length:]
        self.text += given
        return given

    def _num_held_back(self) -> int:
        """Return the length of the longest end of the held text that begins a stop text."""
        for stop in self._stop:
            assert stop, "a request refuses empty stop texts"
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
