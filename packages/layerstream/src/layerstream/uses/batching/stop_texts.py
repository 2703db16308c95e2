"""End an answer before the first of some stop texts, also while it is streamed: pure, no model is known here.

Text arrives in pieces. Whatever may still turn out to be the beginning of a stop text is held back until the
next piece decides it, so nothing of a stop text is ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


class StopFilter:
    """Passes text on up to the first stop text.

    Attributes:
        text: what was passed on so far.
        has_ended: a stop text has come; nothing follows.
    """

    def __init__(self, stop: Sequence[str], write: Callable[[str], None]) -> None:
        """Pass text on to `write`, up to the first of the texts in `stop`, none of which is empty."""
        self.text = ""
        self._stop, self._write = tuple(stop), write
        self._held = ""
        self.has_ended = False

    def feed(self, piece: str) -> None:
        """Take the next piece, and pass on what no stop text can begin with."""
        if self.has_ended:
            return
        self._held += piece
        end = _first_stop(self._held, self._stop)
        if end is not None:
            self.has_ended = True
            self._pass_on(end)
        else:
            self._pass_on(len(self._held) - self._num_undecided())

    def end(self) -> None:
        """Take note that no more text comes: what was held back is no stop text."""
        if not self.has_ended:
            self._pass_on(len(self._held))

    def _pass_on(self, num_characters: int) -> None:
        text, self._held = self._held[:num_characters], self._held[num_characters:]
        self.text += text
        if text:
            self._write(text)

    def _num_undecided(self) -> int:
        """Return the length of the longest end of the held text that a stop text begins with."""
        longest = min(len(self._held), max((len(text) - 1 for text in self._stop), default=0))
        lengths = range(longest, 0, -1)
        return next(
            (length for length in lengths if any(t.startswith(self._held[-length:]) for t in self._stop)), 0
        )


def before_stop(text: str, stop: Collection[str]) -> str:
    """Return `text` up to the first of the stop texts in it."""
    return text[: _first_stop(text, stop)]


def _first_stop(text: str, stop: Collection[str]) -> int | None:
    return min((at for each in stop if (at := text.find(each)) >= 0), default=None)
