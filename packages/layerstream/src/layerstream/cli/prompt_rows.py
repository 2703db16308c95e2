"""Rows with a prompt: their keys, and how they are answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from ..spec.options import Workload
from ..uses.batching.requests import GenerationRequest, GenerationResult
from . import backend
from .jobs import JobRow
from .row_columns import PROMPT_KEYS, PROMPTS
from .row_job import WriteResult, error_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .. import StreamedModel
    from .row_job import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDefaults:
    """Settings for rows that do not have their own.

    Attributes:
        max_new_tokens: the maximum number of new tokens.
        temperature: the temperature for sampling; without it and `top_p`, the likeliest token is taken.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: makes sampling repeatable. Unpacked rows get a seed each, computed from it and the row's number;
            micro-batches draw from torch's generator, which it has seeded.
        stop: texts that end an answer, which includes the one that ended it.
        chat: put each prompt into the chat template; messages are in it in any case.
        system: a system message above each prompt that `chat` is for.
        packed: let similar rows share a tensor.
        max_rows: at most this many rows share a sweep; None lets memory decide.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    packed: bool = True
    max_rows: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return what can change a result: all but `max_rows`."""
        settings = {name: value for name, value in asdict(self).items() if name != "max_rows"}
        return settings | {"stop": list(self.stop) or None}


class PromptRows:
    """Rows with text in `prompt`, a chat in `messages` or tokens in `ids`, and optional settings."""

    needs = "a prompt, messages or ids"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, defaults: PromptDefaults, vocab_size: int) -> None:
        """Use `defaults` where a row has no setting of its own; `ids` must be below `vocab_size`."""
        self._tokenizer, self._defaults, self._vocab_size = tokenizer, defaults, vocab_size
        self._rows: list[JobRow] = []
        self._requests: list[GenerationRequest] = []

    def matches(self, row: JobRow) -> bool:
        """Return whether `row` has a prompt."""
        return any(name in row.fields for name in PROMPTS)

    def add(self, row: JobRow) -> None:
        """Add `row` to those to answer.

        Raises:
            PlanError: the row is invalid.
        """
        if unknown := sorted(set(row.fields) - set(PROMPT_KEYS)):
            raise PlanError(f"unknown key {', '.join(unknown)}: a row may have id, {', '.join(PROMPT_KEYS)}")
        given = [name for name in PROMPTS if name in row.fields]
        if len(given) != 1:
            raise PlanError(f"a row has one of prompt, messages and ids; this one has {' and '.join(given)}")
        try:
            request = self._request(row)
        except (TypeError, ValueError) as error:
            raise PlanError(str(error)) from error
        self._rows.append(row)
        self._requests.append(request)

    def _request(self, row: JobRow) -> GenerationRequest:
        defaults = self._defaults
        settings = {name: value for name, value in row.fields.items() if name not in PROMPTS}
        settings.setdefault("max_new_tokens", defaults.max_new_tokens)
        if defaults.temperature or defaults.top_p or settings.get("temperature") is not None:
            settings.setdefault("do_sample", True)
        if settings.get("do_sample"):
            settings.setdefault("temperature", defaults.temperature)
            if defaults.top_p is not None:
                settings["options"] = {"top_p": defaults.top_p, **settings.get("options", {})}
            if not defaults.packed and defaults.seed is not None:
                settings.setdefault("seed", defaults.seed + row.number)
        stop = settings.pop("stop", defaults.stop)
        return GenerationRequest(
            prompt=self._tokenize(row), stop=(stop,) if isinstance(stop, str) else tuple(stop), **settings
        )

    def _tokenize(self, row: JobRow) -> list[int]:
        if "messages" in row.fields:
            backend.check_messages(row.fields["messages"])
            return backend.encode_messages(self._tokenizer, row.fields["messages"])
        ids, prompt = row.fields.get("ids"), row.fields.get("prompt")
        if ids is None:
            if not isinstance(prompt, str) or not prompt:
                raise PlanError(f"prompt must be text that is not empty; got {prompt!r:.60}")
            defaults = self._defaults
            ids = backend.encode_prompt(self._tokenizer, prompt, chat=defaults.chat, system=defaults.system)
        if not isinstance(ids, list) or not all(
            type(token) is int and 0 <= token < self._vocab_size for token in ids
        ):
            raise PlanError(f"ids must be a list of token ids from 0 to {self._vocab_size - 1}")
        return ids

    def workload(self, max_rows: int) -> Workload | None:
        """Return the workload of the longest prompts and answers, at most `max_rows` at once."""
        if not self._requests:
            return None
        beams = [request.num_beams for request in self._requests]
        return Workload(
            batch_size=max(*beams, min(max_rows, sum(beams))),
            prompt_tokens=max(len(request.prompt) for request in self._requests),
            new_tokens=max(request.max_new_tokens for request in self._requests),
        )

    def run(
        self, streamed: StreamedModel, write: WriteResult, on_progress: Callable[[Progress], None]
    ) -> None:
        """Answer all added rows.

        Raises:
            StreamError: the weights could not be moved; rows without an answer stay open.
        """
        if not self._requests:
            return
        backend.generate_many(
            streamed,
            self._requests,
            packed=self._defaults.packed,
            max_rows=self._defaults.max_rows,
            tokenizer=self._tokenizer,
            on_result=partial(self.write_result, write),
            on_progress=on_progress,
        )

    @property
    def requests(self) -> Sequence[GenerationRequest]:
        """The requests of all added rows, with their prompts as tokens."""
        return self._requests

    def write_result(self, write: WriteResult, result: GenerationResult) -> None:
        """Write the result of one of `requests`.

        Raises:
            StreamError, MemoryError: the row is not the cause of the error; it stays open.
        """
        row = self._rows[result.index]
        write(row, self.result_fields(row, result))

    def result_fields(self, row: JobRow, result: GenerationResult) -> dict[str, Any]:
        """Return the result of `row` as the fields of its line.

        Raises:
            StreamError, MemoryError: the row is not the cause of the error; it stays open.
        """
        return answer_fields(result)


def answer_fields(result: GenerationResult) -> dict[str, Any]:
    """Return a result as the fields of its line.

    Raises:
        StreamError, MemoryError: the row is not the cause of the error; it stays open.
    """
    if result.error is not None:
        return error_fields(result.error)
    return {
        "text": result.text,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "finish_reason": result.finish_reason,
        **({} if result.seed is None else {"seed": result.seed}),
    }
