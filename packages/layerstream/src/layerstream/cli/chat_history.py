"""The conversation of a chat: its turns, what of them still fits the context, and its file.

Pure but for the file: no model is known here, the caller counts tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import PlanError

Message = dict[str, str]
"""A `role` and a `content`, as chat templates take them."""


class Conversation:
    """Questions and answers in turn, below a system message.

    Attributes:
        system: the system message; None without one.
    """

    def __init__(self, system: str | None = None) -> None:
        """Start with no turn."""
        self.system = system
        self._messages: list[Message] = []
        self._first = 0

    @property
    def messages(self) -> list[Message]:
        """All messages, those that were left out too."""
        return [*self._head(), *self._messages]

    @property
    def sent(self) -> list[Message]:
        """The messages that the model is to see."""
        return [*self._head(), *self._messages[self._first :]]

    def _head(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def ask(self, text: str) -> None:
        """Add a question."""
        self._messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Add the answer to the last question."""
        self._messages.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Remove the last question, which has no answer."""
        assert self._messages[-1]["role"] == "user", "an answered question stays"
        self._messages.pop()
        self._first = min(self._first, len(self._messages))

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self._messages.clear()
        self._first = 0

    def fit(self, count_tokens: Callable[[Sequence[Message]], int], most_tokens: int) -> int:
        """Leave out the oldest turns until the rest has at most `most_tokens`; return how many went just now.

        Raises:
            PlanError: the last question alone is too long. Nothing is left out then.
        """
        before = self._first
        while (num_tokens := count_tokens(self.sent)) > most_tokens:
            if self._first + 1 >= len(self._messages):
                self._first = before
                raise PlanError(
                    f"this message is too long: in the chat template it has {num_tokens} tokens, and there "
                    f"is room for {most_tokens}. Shorten it, or start with more --context-tokens"
                )
            # a question goes with its answer: templates want them in turn
            self._first += 2
        return (self._first - before) // 2

    def save(self, path: Path) -> None:
        """Write all messages as JSON, `{"messages": [...]}`, to a new file.

        Raises:
            PlanError: the file is there already, or cannot be written.
        """
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n"
        try:
            with path.expanduser().open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except FileExistsError as error:
            raise PlanError(
                f"{path} is there already, and nothing is overwritten: give another name"
            ) from error
        except OSError as error:
            raise PlanError(f"cannot write {path}: {error.strerror or error}") from error
