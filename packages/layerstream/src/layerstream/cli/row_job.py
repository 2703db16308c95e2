"""A file of rows carried out: what `batch` and `score` share.

Room: surfaces. Opens rows and results, lets each kind of row check and answer its own, and shows how far it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import typer

from .. import BatchProgress, BudgetTooSmallError, ScoreProgress, StreamedModel, Workload
from ..spec.sizes import format_seconds
from .batch_rows import RowKind, sort_rows
from .jobs import ResultFile, read_rows
from .printing import err_console, note
from .terminal import StatusLine

_MOST_ROWS = 64
_LINE_EVERY_S = 10.0


def carry_out(
    rows: Path,
    results: Path,
    *,
    kinds: Callable[[], list[RowKind]],
    opener: Callable[..., StreamedModel],
    seed: int | None = None,
    quiet: bool = False,
) -> None:
    """Give every row of `rows` that has none its result in `results`.

    Args:
        rows: JSON lines.
        results: appended to, a line a row.
        kinds: makes the kinds of rows; called when there is something to do.
        opener: loads the model for a `workload=`.
        seed: of torch's generator.
        quiet: no plan, progress or report.

    Raises:
        JobError: a file cannot be used.
        typer.Exit: with status 1 where results are errors.
    """
    asked = read_rows(rows)
    with ResultFile(results, asked) as file:
        left = [row for row in asked if row.number not in file.done]
        if left:
            wanted = kinds()
            if sort_rows(left, wanted, file.write):
                with _load(opener, wanted) as streamed:
                    _answer(
                        streamed,
                        wanted,
                        file,
                        _Told(len(asked), len(asked) - len(left), shown=not quiet),
                        seed,
                    )
        if not quiet:
            note(
                f"{len(file.done)} of {len(asked)} rows have their result, {file.num_errors} of them an error: {results}"
            )
        if file.num_errors:
            raise typer.Exit(1)


def _load(opener: Callable[..., StreamedModel], kinds: list[RowKind]) -> StreamedModel:
    """Load with room for as many rows at once as the budget holds, 64 at most."""
    most_rows = _MOST_ROWS
    with err_console().status("planning and loading"):
        while True:
            try:
                return opener(workload=_joined(kinds, most_rows))
            except BudgetTooSmallError:
                if most_rows == 1:
                    raise
                most_rows //= 2


def _joined(kinds: list[RowKind], most_rows: int) -> Workload:
    wanted = [workload for kind in kinds if (workload := kind.workload(most_rows)) is not None]
    return Workload(
        batch_size=max(each.batch_size for each in wanted),
        prompt_tokens=max(each.prompt_tokens for each in wanted),
        new_tokens=max(each.new_tokens for each in wanted),
    )


def _answer(
    streamed: StreamedModel, kinds: list[RowKind], file: ResultFile, told: _Told, seed: int | None
) -> None:
    if told.shown:
        note(streamed.plan.explain() + "\n")
    if seed is not None:
        torch.manual_seed(seed)
    with StatusLine(told.line, shown=told.shown):
        for kind in kinds:
            kind.run(streamed, file.write, told.hear)
    if told.shown:
        note(streamed.report().explain())


class _Told:
    """Where the batch stands, as a line for the terminal, or now and then for a log."""

    def __init__(self, num_rows: int, num_before: int, *, shown: bool) -> None:
        self.shown = shown
        self._num_rows, self._num_before = num_rows, num_before
        self._latest: BatchProgress | ScoreProgress | None = None
        self._last_line_s = perf_counter()

    def hear(self, progress: BatchProgress | ScoreProgress) -> None:
        self._latest = progress
        if self.shown and not sys.stderr.isatty() and perf_counter() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = perf_counter()
            note(self.line())

    def line(self) -> str:
        state = self._latest
        if state is None:
            return f"{self._num_before}/{self._num_rows} rows · waiting for the first weights"
        left = "" if state.eta_s is None else f" · about {format_seconds(state.eta_s)} left at most"
        return f"{self._num_before + state.done}/{self._num_rows} rows · {_where(state)}{left}"


def _where(state: BatchProgress | ScoreProgress) -> str:
    if isinstance(state, BatchProgress):
        return f"{state.tokens}/{state.most_tokens} tokens · sweep {state.sweeps}"
    unit = f" · unit {state.unit}/{state.units}" if state.units else ""
    return f"sweep {state.sweep + 1}/{state.sweeps}{unit}"
