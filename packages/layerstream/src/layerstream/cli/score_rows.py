"""Rows with a prefix and suffixes: how they are read and scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from ..spec.options import Workload
from . import backend
from .jobs import JobRow
from .row_columns import SCORE_KEYS
from .row_job import WriteResult, error_fields

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from .. import ScoringResult, StreamedModel
    from ..uses.scoring.requests import TokenizedScoring
    from .row_job import Progress


class ScoreRows:
    """Rows with a `prefix` and `suffixes`, each text or a list of tokens."""

    needs = "a prefix and suffixes"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        *,
        head: Path | None = None,
        max_rows: int | None = None,
    ) -> None:
        """Score by log-probabilities, or by the outputs of `head`, a safetensors file."""
        self._head, self._max_rows = head, max_rows
        self._tokenizer = backend.ScoringTokenizer(
            config, int(config.vocab_size), tokenizer, feeds_last=head is not None
        )
        self._rows: list[JobRow] = []
        self._requests: list[TokenizedScoring] = []

    def matches(self, row: JobRow) -> bool:
        """Return whether `row` has a prefix or suffixes."""
        return any(key in row.fields for key in SCORE_KEYS)

    def add(self, row: JobRow) -> None:
        """Add `row` to those to score.

        Raises:
            PlanError: the row is invalid.
        """
        if set(row.fields) - {"adapter"} != set(SCORE_KEYS):
            raise PlanError(
                "a row to score has id, prefix and suffixes, and may have an adapter; "
                f"this one has {', '.join(sorted(row.fields))}"
            )
        prefix, suffixes = row.fields["prefix"], row.fields["suffixes"]
        if not isinstance(prefix, str | list) or not isinstance(suffixes, list):
            raise PlanError("prefix must be text or a list of tokens, and suffixes a list of these")
        if not all(isinstance(suffix, str | list) for suffix in suffixes):
            raise PlanError("each suffix must be text or a list of tokens")
        request = self._tokenizer.read(row.number, (prefix, suffixes, row.fields.get("adapter")))
        self._rows.append(row)
        self._requests.append(request)

    def workload(self, max_rows: int) -> Workload | None:
        """Return the workload of the longest texts, at most `max_rows` at once; scoring keeps no cache."""
        if not self._requests:
            return None
        longest = max(len(request.prefix) + max(map(len, request.suffixes)) for request in self._requests)
        return Workload(batch_size=min(max_rows, len(self._requests)), prompt_tokens=longest, new_tokens=0)

    def run(
        self, streamed: StreamedModel, write: WriteResult, on_progress: Callable[[Progress], None]
    ) -> None:
        """Score all added rows.

        Raises:
            StreamError: the weights could not be moved; rows without scores stay open.
        """
        if not self._requests:
            return
        backend.score(
            streamed,
            [(request.prefix, request.suffixes, request.adapter) for request in self._requests],
            head=self._head,
            max_rows=self._max_rows,
            on_result=lambda result: write(self._rows[result.index], score_fields(result)),
            on_progress=on_progress,
        )


def score_fields(result: ScoringResult) -> dict[str, Any]:
    """Return a result as the fields of its line.

    Raises:
        StreamError, MemoryError: the row is not the cause of the error; it stays open.
    """
    if result.error is not None:
        return error_fields(result.error)
    return {
        "best": result.best,
        "best_by_mean": result.best_by_mean,
        "scores": backend.score_fields(result),
    }
