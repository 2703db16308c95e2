"""Rows of the multiple-choice form: a prefix and suffixes, and which of them is the likeliest.

Room: surfaces. A kind of row beside those of `batch_rows`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from .. import ScoringResult, StreamedModel, Workload, score
from ..checkpoint.hub import resolve_model
from ..errors import PlanError, StreamError
from ..uses.scoring import ScoringTokenizer, TokenizedScoring
from .batch_rows import Progress, Write
from .jobs import JobRow

_KEYS = ("prefix", "suffixes")


def load_config(name: str, *, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the config of the checkpoint's decoder."""
    directory = resolve_model(name, revision=revision, weights=False)
    return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code).get_text_config(
        decoder=True
    )


class ScoreRows:
    """Rows with a `prefix` and `suffixes`, each text or a list of tokens."""

    wanted = "a prefix and suffixes"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        *,
        head: Path | None = None,
        batches: int | None = None,
    ) -> None:
        """Score with `head`, a safetensors file, or by log-probabilities; in `batches` sweeps, or as few as memory allows."""
        self._head, self._batches = head, batches
        self._reader = ScoringTokenizer(
            config, int(config.vocab_size), tokenizer, feeds_last=head is not None
        )
        self._taken: list[tuple[JobRow, TokenizedScoring]] = []

    def claims(self, row: JobRow) -> bool:
        """Return whether `row` has a prefix or suffixes."""
        return any(key in row.fields for key in _KEYS)

    def take(self, row: JobRow) -> None:
        """Keep `row`.

        Raises:
            PlanError: it makes no sense.
        """
        if set(row.fields) != set(_KEYS):
            raise PlanError(
                f"a row to score holds id, prefix and suffixes; this one has {', '.join(sorted(row.fields))}"
            )
        prefix, suffixes = row.fields["prefix"], row.fields["suffixes"]
        if not isinstance(prefix, str | list) or not isinstance(suffixes, list):
            raise PlanError("the prefix is text or a list of tokens, and suffixes is a list of such")
        if not all(isinstance(suffix, str | list) for suffix in suffixes):
            raise PlanError("each suffix is text or a list of tokens")
        self._taken.append((row, self._reader.read(row.number, (prefix, suffixes))))

    def workload(self, most_rows: int) -> Workload | None:
        """Return room for the longest texts, `most_rows` at once: more than their tasks take, which keep no cache."""
        if not self._taken:
            return None
        longest = max(len(request.prefix) + max(map(len, request.suffixes)) for _, request in self._taken)
        return Workload(batch_size=min(most_rows, len(self._taken)), prompt_tokens=longest, new_tokens=0)

    def run(self, streamed: StreamedModel, write: Write, progress: Progress) -> None:
        """Score every row that was taken.

        Raises:
            StreamError: the weights could not be moved; rows without scores stay open.
        """
        if not self._taken:
            return

        def hear(result: ScoringResult) -> None:
            write(self._taken[result.index][0], score_fields(result))

        requests = [(request.prefix, request.suffixes) for _, request in self._taken]
        score(
            streamed, requests, head=self._head, batches=self._batches, on_result=hear, on_progress=progress
        )


def score_fields(result: ScoringResult) -> dict[str, Any]:
    """Return a result as the fields of its line.

    Raises:
        StreamError: the row is not to blame: it stays open for the next start.
    """
    if isinstance(result.error, StreamError | MemoryError):
        raise result.error
    if result.error is not None:
        return {"error": f"{type(result.error).__name__}: {' '.join(str(result.error).split())}"[:500]}
    scores: list[dict[str, Any]] = []
    for each in result.scores:
        fields: dict[str, Any] = {
            "sum": _finite(each.sum),
            "mean": _finite(each.mean),
            "tokens": each.suffix_tokens,
        }
        if each.outputs.size:
            fields["outputs"] = each.outputs.tolist()
        else:
            fields |= {
                "is_greedy": each.is_greedy,
                "token_logprobs": [_finite(value) for value in each.token_logprobs.tolist()],
            }
        scores.append(fields)
    return {"best": result.best, "best_by_mean": result.best_by_mean, "scores": scores}


def _finite(value: float) -> float | None:
    """Return `value`, or None for the logarithm of nothing, which JSON has no word for."""
    return value if math.isfinite(value) else None
