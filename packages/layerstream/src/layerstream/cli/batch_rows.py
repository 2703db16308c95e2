"""What the rows of a batch may ask, and how each kind of row is answered.

Room: surfaces. A kind of row knows its keys and runs all of its rows together; `batch` tries the kinds one after another. Another
kind is another class like `PromptRows`, in `KINDS` of `batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from .. import (
    BatchProgress,
    GenerationRequest,
    GenerationResult,
    ScoreProgress,
    StreamedModel,
    Workload,
    generate_many,
)
from ..errors import PlanError, StreamError
from .jobs import JobRow
from .session import encode_prompt

Write = Callable[[JobRow, Mapping[str, Any]], None]
Progress = Callable[[BatchProgress | ScoreProgress], object]


class RowKind(Protocol):
    """One kind of row: checks its rows, says what memory they want, answers them.

    Attributes:
        wanted: the keys by which it is known, for messages.
    """

    wanted: str

    def claims(self, row: JobRow) -> bool:
        """Return whether `row` is of this kind."""

    def take(self, row: JobRow) -> None:
        """Keep `row`; raise PlanError when it makes no sense."""

    def workload(self, most_rows: int) -> Workload | None:
        """Return what its rows want, at most `most_rows` of them at once; None when there are none."""

    def run(self, streamed: StreamedModel, write: Write, progress: Progress) -> None:
        """Answer every row that was taken, writing each answer as it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDefaults:
    """What holds for rows that say nothing else.

    Attributes:
        max_new_tokens: tokens at most.
        temperature: None is greedy.
        seed: isolated rows draw from it and their number; micro-batches from torch's generator that it was given to.
        chat: put each prompt into the chat template.
        isolate: give every row a tensor of its own.
        batches: task in that many batches; None lets the budget decide.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    seed: int | None = None
    chat: bool = False
    isolate: bool = False
    batches: int | None = None


_KEYS = (
    "prompt",
    "ids",
    "max_new_tokens",
    "do_sample",
    "seed",
    "temperature",
    "num_beams",
    "stop",
    "options",
)


class PromptRows:
    """Rows with a prompt: text in `prompt`, or tokens in `ids`, and settings of their own."""

    wanted = "a prompt, or ids"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, defaults: PromptDefaults, vocab_size: int) -> None:
        """Answer with `defaults` where a row says nothing; `vocab_size` bounds its `ids`."""
        self._tokenizer, self._defaults, self._vocab_size = tokenizer, defaults, vocab_size
        self._taken: list[tuple[JobRow, GenerationRequest]] = []

    def claims(self, row: JobRow) -> bool:
        """Return whether `row` has a prompt."""
        return "prompt" in row.fields or "ids" in row.fields

    def take(self, row: JobRow) -> None:
        """Keep `row`.

        Raises:
            PlanError: it makes no sense.
        """
        if unknown := sorted(set(row.fields) - set(_KEYS)):
            raise PlanError(f"unknown key {', '.join(unknown)}: a row may hold id, {', '.join(_KEYS)}")
        if ("prompt" in row.fields) == ("ids" in row.fields):
            raise PlanError("a row has either a prompt or ids, not both")
        try:
            self._taken.append((row, self._request(row)))
        except (TypeError, ValueError) as error:
            raise PlanError(str(error)) from error

    def _request(self, row: JobRow) -> GenerationRequest:
        settings = {name: value for name, value in row.fields.items() if name not in ("prompt", "ids")}
        settings.setdefault("max_new_tokens", self._defaults.max_new_tokens)
        if self._defaults.temperature is not None and "do_sample" not in settings:
            settings = {"do_sample": True, "temperature": self._defaults.temperature, **settings}
        if settings.get("temperature") is not None:
            settings.setdefault("do_sample", True)
        if settings.get("do_sample") and self._defaults.isolate and self._defaults.seed is not None:
            settings.setdefault("seed", self._defaults.seed + row.number)
        stop = settings.pop("stop", ())
        ids = self._ids(row)
        return GenerationRequest(
            prompt=ids, stop=(stop,) if isinstance(stop, str) else tuple(stop), **settings
        )

    def _ids(self, row: JobRow) -> list[int]:
        ids, prompt = row.fields.get("ids"), row.fields.get("prompt")
        if ids is None:
            if not isinstance(prompt, str) or not prompt:
                raise PlanError(f"a prompt is text, and not empty; got {prompt!r:.60}")
            ids = encode_prompt(self._tokenizer, prompt, chat=self._defaults.chat)["input_ids"][0].tolist()
        if not isinstance(ids, list) or not all(
            type(each) is int and 0 <= each < self._vocab_size for each in ids
        ):
            raise PlanError(f"ids is a list of tokens from 0 to {self._vocab_size - 1}")
        return ids

    def workload(self, most_rows: int) -> Workload | None:
        """Return room for the longest prompts and answers, `most_rows` at once."""
        requests = [request for _, request in self._taken]
        if not requests:
            return None
        beams = [each.num_beams for each in requests]
        return Workload(
            batch_size=max(*beams, min(most_rows, sum(beams))),
            prompt_tokens=max(len(each.prompt) for each in requests),
            new_tokens=max(each.max_new_tokens for each in requests),
        )

    def run(self, streamed: StreamedModel, write: Write, progress: Progress) -> None:
        """Answer every row that was taken.

        Raises:
            StreamError: the weights could not be moved; rows without an answer stay open.
        """

        def hear(result: GenerationResult) -> None:
            write(self._taken[result.index][0], answer_fields(result))

        if not self._taken:
            return
        generate_many(
            streamed,
            [request for _, request in self._taken],
            isolate=self._defaults.isolate,
            batches=self._defaults.batches,
            tokenizer=self._tokenizer,
            on_result=hear,
            on_progress=progress,
        )


def answer_fields(result: GenerationResult) -> dict[str, Any]:
    """Return a result as the fields of its line.

    Raises:
        StreamError: the row is not to blame: it stays open for the next start.
    """
    if isinstance(result.error, StreamError | MemoryError):
        raise result.error
    if result.error is not None:
        return {"error": f"{type(result.error).__name__}: {' '.join(str(result.error).split())}"[:500]}
    return {
        "text": result.text,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "finish_reason": result.finish_reason,
        **({} if result.seed is None else {"seed": result.seed}),
    }


def sort_rows(rows: Sequence[JobRow], kinds: Sequence[RowKind], write: Write) -> int:
    """Give every row to its kind, and write an error for each that has none or is wrong; return how many were taken."""
    taken = 0
    for row in rows:
        kind = next((each for each in kinds if each.claims(row)), None)
        try:
            if row.error is not None:
                raise PlanError(row.error)
            if kind is None:
                wanted = ", ".join(each.wanted for each in kinds)
                raise PlanError(
                    f"a row needs {wanted}; this one has {', '.join(sorted(row.fields)) or 'nothing'}"
                )
            kind.take(row)
            taken += 1
        except PlanError as error:
            write(row, {"error": str(error)})
    return taken
