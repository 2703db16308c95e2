"""How rows become requests, and results become columns; knows Arrow, but neither Ray nor a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from ..errors import PlanError
from ..uses.batching.requests import GenerationRequest, sampling_settings
from ..uses.scoring.requests import ScoringRequest
from ..uses.scoring.results import ScoringResult
from ..uses.scoring.score_fields import score_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_ERROR_CHARACTERS = 500

_ANSWER = ("answer", "tokens", "finish_reason", "error")
_SCORES = ("best", "best_by_mean", "scores", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswer:
    """What became of a row.

    Attributes:
        text: the answer as text, without special tokens; None after an error.
        prompt_tokens: the number of tokens of the prompt.
        tokens: the answer's tokens.
        finish_reason: `"stop"`, `"length"` or `"error"`.
        seed: the seed it was sampled with; None without sampling.
        error: why there is no answer; None if there is one.
    """

    text: str | None = None
    prompt_tokens: int = 0
    tokens: tuple[int, ...] = ()
    finish_reason: str = "error"
    seed: int | None = None
    error: Exception | None = None


class RowFormat(Protocol):
    """Reads a prompt and its settings from a row, and puts answers into columns. A worker has its own."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that answers depend on."""

    def prepare(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        """Take the tokenizer and the number of tokens of the model; called once, before any row."""

    def check(self, columns: Sequence[str]) -> None:
        """Raise PlanError if rows with these columns cannot be answered, or cannot take the answers."""

    def request(self, row: Mapping[str, Any]) -> GenerationRequest:
        """Return the request in a row; raise PlanError if there is none."""

    def table(self, rows: pa.Table, answers: Sequence[RowAnswer]) -> pa.Table:
        """Return `rows` with what became of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptColumn:
    """Prompts in one column: text, a list of token ids, or a list of messages.

    Attributes:
        name: the column.
        max_new_tokens: the maximum number of new tokens.
        temperature: the temperature for sampling; without it and `top_p`, the likeliest token is taken.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: the seed for sampling, the same for each row; None draws one for each row.
        stop: texts that end an answer.
        chat: put a text into the chat template.
    """

    name: str
    max_new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    chat: bool = False

    def __post_init__(self) -> None:
        """Refuse what transformers would refuse for each row."""
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise PlanError(f"top_p must be above 0 and at most 1; got {self.top_p}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that answers depend on."""
        return (self.name,)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        """Do nothing: the service encodes prompts."""

    def check(self, columns: Sequence[str]) -> None:
        """Raise PlanError if the column is missing, or one of an answer is there."""
        check_columns(columns, needed=[self.name], added=_ANSWER)

    def request(self, row: Mapping[str, Any]) -> GenerationRequest:
        """Return the request in a row.

        Raises:
            PlanError: the column holds no prompt.
        """
        prompt = row[self.name]
        if isinstance(prompt, str) and self.chat:
            given: dict[str, Any] = {"messages": ({"role": "user", "content": prompt},)}
        elif isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            given = {"messages": tuple(prompt)}
        elif isinstance(prompt, str | list):
            given = {"prompt": prompt}
        else:
            raise PlanError(f"{self.name} must hold text, token ids or messages; got {type(prompt).__name__}")
        return GenerationRequest(
            **given,
            max_new_tokens=self.max_new_tokens,
            **sampling_settings(self.temperature, self.top_p),
            seed=self.seed,
            stop=self.stop,
        )

    def table(self, rows: pa.Table, answers: Sequence[RowAnswer]) -> pa.Table:
        """Return `rows` with the columns answer, tokens, finish_reason and error."""
        return with_columns(
            rows,
            {
                "answer": pa.array([answer.text for answer in answers], pa.string()),
                "tokens": pa.array([answer.tokens for answer in answers], pa.list_(pa.int32())),
                "finish_reason": pa.array([answer.finish_reason for answer in answers], pa.string()),
                "error": pa.array([error_text(answer.error) for answer in answers], pa.string()),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumns:
    """Prefixes in one column and their suffixes in another, each text or token ids.

    Attributes:
        prefix: the column of the prefixes.
        suffixes: the column with a list of suffixes in each row.
        has_head: a head scores, and not the model's own.
    """

    prefix: str
    suffixes: str
    has_head: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that scores depend on."""
        return self.prefix, self.suffixes

    def check(self, columns: Sequence[str]) -> None:
        """Raise PlanError if a column is missing, or one of the scores is there."""
        check_columns(columns, needed=[self.prefix, self.suffixes], added=_SCORES)

    def request(self, row: Mapping[str, Any]) -> ScoringRequest:
        """Return the request in a row.

        Raises:
            PlanError: a column holds something else.
        """
        prefix, suffixes = row[self.prefix], row[self.suffixes]
        if not isinstance(prefix, str | list) or not isinstance(suffixes, list):
            raise PlanError(f"{self.prefix} must hold text or token ids, and {self.suffixes} a list of these")
        return prefix, suffixes

    def table(self, rows: pa.Table, results: Sequence[ScoringResult]) -> pa.Table:
        """Return `rows` with the columns best, best_by_mean, scores and error."""
        return with_columns(
            rows,
            {
                "best": pa.array([result.best for result in results], pa.int32()),
                "best_by_mean": pa.array([result.best_by_mean for result in results], pa.int32()),
                "scores": pa.array(
                    [None if result.error else score_fields(result) for result in results],
                    pa.list_(self._score_type()),
                ),
                "error": pa.array([error_text(result.error) for result in results], pa.string()),
            },
        )

    def _score_type(self) -> pa.DataType:
        common = [("sum", pa.float64()), ("mean", pa.float64()), ("tokens", pa.int32())]
        own = (
            [("outputs", pa.list_(pa.float64()))]
            if self.has_head
            else [
                ("logprob", pa.float64()),
                ("is_greedy", pa.bool_()),
                ("token_logprobs", pa.list_(pa.float64())),
            ]
        )
        return pa.struct([*common, *own])


def check_columns(columns: Sequence[str], *, needed: Sequence[str], added: Sequence[str]) -> None:
    """Do nothing if rows with `columns` have what is needed, and none of what is added.

    Raises:
        PlanError: a column is missing, or is there already.
    """
    if missing := [name for name in needed if name not in columns]:
        raise PlanError(f"there is no column {missing[0]}: the rows have {', '.join(columns) or 'none'}")
    if taken := [name for name in added if name in columns]:
        raise PlanError(
            f"the rows have a column {taken[0]} already, which the results need: give it another name with "
            "rename_columns, or leave it out with drop_columns"
        )


def with_columns(rows: pa.Table, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """Return `rows` with more columns."""
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def error_text(error: Exception | None) -> str | None:
    """Return an error as one line; None for none."""
    if error is None:
        return None
    text = " ".join(str(error).split())
    named = text if isinstance(error, PlanError) else f"{type(error).__name__}: {text}"
    return named[:_MOST_ERROR_CHARACTERS]
