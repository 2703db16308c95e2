"""The keys of a row, and rows whose columns have other names: which column is which key.

It knows names and values; it reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROMPTS = ("prompt", "messages", "ids")
"""A row to answer has one of these."""

PROMPT_KEYS = (
    *PROMPTS,
    "max_new_tokens",
    "do_sample",
    "seed",
    "temperature",
    "num_beams",
    "stop",
    "adapter",
    "options",
)
"""What a row to answer may have, beside its id."""

SCORE_KEYS = ("prefix", "suffixes")
"""A row to score has both."""


class ColumnEmptyError(ValueError):
    """A row has nothing in a column that was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns make a row, where the keys of a row are not the columns.

    Attributes:
        prompt: the column of the prompts: texts, token ids or conversations.
        prefix: the column of the prefixes.
        suffixes: the column of the suffixes.
    """

    prompt: str | None = None
    prefix: str | None = None
    suffixes: str | None = None

    def __bool__(self) -> bool:
        """Return whether any column is named."""
        return bool(self.by_key)

    @property
    def by_key(self) -> dict[str, str]:
        """The column of each key; empty if none is named."""
        columns = {} if self.prompt is None else {"prompt": self.prompt}
        if self.prefix is not None or self.suffixes is not None:
            columns["prefix"] = self.prefix or "prefix"
            columns["suffixes"] = self.suffixes or "suffixes"
        return columns

    def take(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row that `record` makes: the named columns under their keys, and its id, if it has one.

        Raises:
            ColumnEmptyError: it has nothing in a column.
        """
        row = {} if record.get("id") is None else {"id": record["id"]}
        for key, column in self.by_key.items():
            value = record.get(column)
            if value is None:
                filled = [name for name, each in record.items() if each is not None]
                raise ColumnEmptyError(
                    f"the row has nothing in {column!r}; it has {', '.join(filled) or 'nothing at all'}"
                )
            row[_prompt_key(value) if key == "prompt" else key] = value
        return row


KEYS_THEMSELVES = Columns()
"""The columns are called as the keys of a row."""


def _prompt_key(prompt: Any) -> str:
    """Return under which key a row has such a prompt. What is no prompt is refused as a text that is none."""
    if isinstance(prompt, list) and prompt:
        if all(isinstance(each, Mapping) for each in prompt):
            return "messages"
        if all(isinstance(each, int) for each in prompt):
            return "ids"
    return "prompt"
