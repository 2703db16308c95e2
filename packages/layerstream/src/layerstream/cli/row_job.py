"""Run a job, the rows of a file or a data set: the part that `batch` and `score` share.

It opens the rows and the results, loads the model with enough memory for the rows, has each kind of row
answered, and shows the progress.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import typer

from ..checkpoint.urls import is_url
from ..errors import JobError, PlanError, StreamError
from ..planning.most_rows import with_most_rows
from ..spec.options import LoadOptions, Workload
from ..spec.sizes import format_seconds
from . import backend, parts
from .interrupts import kept_if_interrupted
from .job_header import JobHeader, describe_job
from .jobs import JobRow
from .printing import LOADING_TOKENIZER, loading_status, note, working
from .result_file import FailedRow, ResultFile, Resume
from .row_sources import RowSource, is_parquet, read_source
from .terminal import StatusLine

if TYPE_CHECKING:
    from .. import BatchProgress, ScoringProgress, StreamedModel

    Progress = BatchProgress | ScoringProgress

WriteResult = Callable[[JobRow, Mapping[str, Any]], None]

_MAX_ROWS = 64
"""The largest number of rows that memory is reserved for."""

_LOG_EVERY_S = 10.0

_MOST_FAILED_ROWS = 10
_MOST_REASON_CHARACTERS = 200


class RowRefusedError(PlanError):
    """A row is invalid, and its result has a form of its own.

    Attributes:
        fields: the result.
    """

    def __init__(self, message: str, *, fields: Mapping[str, Any]) -> None:
        """Store the message and the result."""
        super().__init__(message)
        self.fields = fields


class RowKind(Protocol):
    """One kind of row: checks its rows, says how much memory they need, and answers them.

    Attributes:
        needs: the keys that such a row has, for messages.
    """

    needs: str

    def matches(self, row: JobRow) -> bool:
        """Return whether `row` is of this kind."""

    def add(self, row: JobRow) -> None:
        """Add `row` to those to answer; raise PlanError if it is invalid."""

    def workload(self, max_rows: int) -> Workload | None:
        """Return the workload of the added rows, at most `max_rows` at once; None if there are none."""

    def run(
        self, streamed: StreamedModel, write: WriteResult, on_progress: Callable[[Progress], None]
    ) -> None:
        """Answer all added rows, and write each result as soon as it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowJob:
    """A job: rows and what answers them.

    Attributes:
        command: `batch` or `score`.
        source: where the rows are.
        results_path: JSON lines: a header, then one result per row; results are appended.
        model: a directory or a Hub id.
        options: how to load it; the rows decide the workload.
        settings: returns the command's own settings that can change a result.
        make_kinds: returns the kinds of rows, for a model loaded so; called only if there is something to do.
        resume: how to go on with results that are there.
        max_rows: at most this many rows share a sweep.
        seed: for torch's generator.
        quiet: print no plan, progress or report.
    """

    command: str
    source: RowSource
    results_path: Path
    model: str
    options: LoadOptions
    settings: Callable[[], Mapping[str, Any]]
    make_kinds: Callable[[LoadOptions], list[RowKind]]
    resume: Resume
    max_rows: int | None = None
    seed: int | None = None
    quiet: bool = False


class AnswerRows(Protocol):
    """One way to answer the rows that are open: in this process, or elsewhere."""

    def __call__(
        self,
        job: RowJob,
        options: LoadOptions,
        open_rows: Sequence[JobRow],
        num_rows: int,
        write: WriteResult,
    ) -> None:
        """Write a result for each of `open_rows`, of `num_rows` in all, by a model loaded with `options`."""


def run_job(job: RowJob, answer: AnswerRows | None = None) -> None:
    """Write a result for every row that has none yet.

    Args:
        job: the job.
        answer: answers the rows; None does it in this process.

    Raises:
        JobError: a file cannot be used, or another job made the results.
        typer.Exit: with status 1 if results are errors.
    """
    _refuse_results_among_rows(job.source, job.results_path)
    rows = read_source(
        job.source,
        command=job.command,
        local_files_only=job.options.local_files_only,
        shown=not job.quiet,
    )
    _refuse_one_file_for_both(job.source, job.results_path)
    becomes_parquet = is_parquet(job.results_path)
    lines_path = parts.lines_beside(job.results_path) if becomes_parquet else job.results_path
    describe = partial(_describe, job)
    how_to_go_on = f"run it again{' without --restart' if job.resume.restart else ''} to go on"
    with (
        ExitStack() as at_the_end,
        ResultFile(lines_path, rows, describe, job.resume) as results,
        kept_if_interrupted(lambda: f"{_num_results(results, rows)} in {lines_path}; {how_to_go_on}"),
    ):
        if becomes_parquet:
            at_the_end.callback(parts.write_parquet_results, job.results_path)
        if not job.quiet:
            for text in results.notes:
                note(text)
        open_rows = [row for row in rows if row.number not in results.done]
        if open_rows:
            options = _pinned(job, results.job)
            (answer or _answer_here)(job, options, open_rows, len(rows), results.write)
        if not job.quiet:
            note(f"{_num_results(results, rows)}, {len(results.failed)} of them an error: {job.results_path}")
            for line in failed_lines(results.failed.values()):
                note(line)
        if results.failed:
            raise typer.Exit(1)


def _num_results(results: ResultFile, rows: Sequence[JobRow]) -> str:
    return f"{len(results.done)} of {len(rows)} rows have a result"


def _describe(job: RowJob) -> JobHeader:
    if is_url(job.model):
        # Its weights have to be here to be told apart from others.
        with loading_status(shown=not job.quiet) as on_fetch:
            backend.copy_from_url(job.model, job.options, on_fetch)
    return describe_job(job.command, job.model, job.options, job.settings())


def _pinned(job: RowJob, header: JobHeader | None) -> LoadOptions:
    """Return the options with the header's commit: a branch may move while the model is fetched."""
    commit = header.model["fingerprint"].get("commit") if header is not None else None
    if commit is None or Path(job.model).expanduser().is_dir():
        return job.options
    return replace(job.options, revision=commit)


def _refuse_results_among_rows(source: RowSource, results_path: Path) -> None:
    # the next start would read them as rows
    if source.is_folder and source.path.resolve() in results_path.resolve().parents:
        raise JobError(
            f"the results would lie in the folder of the rows, {source.text}: give another place for them"
        )


def _refuse_one_file_for_both(source: RowSource, results_path: Path) -> None:
    if not source.is_dataset and results_path.exists() and results_path.samefile(source.path):
        raise JobError(f"the rows and the results are one file, {source.text}: give another for the results")


def failed_lines(failed: Collection[FailedRow]) -> Iterator[str]:
    """Yield a line for each of the first failed rows, with its reason, and what to do about them."""
    for row in sorted(failed, key=lambda row: row.number)[:_MOST_FAILED_ROWS]:
        named = f"row {row.number}" if row.id == row.number else f"row {row.number} (id {row.id})"
        reason = " ".join(row.reason.split())
        if len(reason) > _MOST_REASON_CHARACTERS:
            reason = reason[:_MOST_REASON_CHARACTERS] + "…"
        yield f"  {named}: {reason}"
    if len(failed) > _MOST_FAILED_ROWS:
        yield f"  and {len(failed) - _MOST_FAILED_ROWS} more"
    if failed:
        yield "repair these rows and start again, or run them again as they are with --retry-errors"


def assign_rows(rows: Sequence[JobRow], kinds: Sequence[RowKind], write: WriteResult) -> int:
    """Add every row to its kind, or write an error for it; return how many rows were added."""
    num_added = 0
    for row in rows:
        try:
            _kind_of(row, kinds).add(row)
            num_added += 1
        except RowRefusedError as refusal:
            write(row, refusal.fields)
        except PlanError as error:
            write(row, {"error": str(error)})
    return num_added


def _kind_of(row: JobRow, kinds: Sequence[RowKind]) -> RowKind:
    if row.error is not None:
        raise PlanError(row.error)
    for kind in kinds:
        if kind.matches(row):
            return kind
    needs = ", or ".join(kind.needs for kind in kinds)
    raise PlanError(f"a row needs {needs}; this one has {', '.join(sorted(row.fields)) or 'nothing'}")


def error_fields(error: Exception) -> dict[str, Any]:
    """Return the result of a row that failed.

    Raises:
        StreamError, MemoryError: `error` itself, if the row is not the cause. The row then has no result,
            and the next start runs it again.
    """
    if isinstance(error, StreamError | MemoryError):
        raise error
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}


def _answer_here(
    job: RowJob, options: LoadOptions, open_rows: Sequence[JobRow], num_rows: int, write: WriteResult
) -> None:
    kinds = kinds_of(job, options)
    if assign_rows(open_rows, kinds, write):
        progress = _JobProgress(num_rows, num_rows - len(open_rows), is_shown=not job.quiet)
        with _load(job, options, kinds) as streamed:
            _answer(streamed, kinds, write, progress, job.seed)


def kinds_of(job: RowJob, options: LoadOptions) -> list[RowKind]:
    """Return the kinds of rows of a job, with a status on the terminal while the tokenizer is loaded."""
    with working(LOADING_TOKENIZER, shown=not job.quiet):
        return job.make_kinds(options)


def _load(job: RowJob, options: LoadOptions, kinds: list[RowKind]) -> StreamedModel:
    """Load the model with memory for as many rows at once as the budget allows."""
    num_rows = min(job.max_rows or _MAX_ROWS, _MAX_ROWS)
    backend.download_weights(job.model, options, shown=not job.quiet)
    with loading_status(shown=not job.quiet) as on_progress:

        def load(num_rows: int) -> StreamedModel:
            fitted = replace(options, workload=_workload(kinds, num_rows))
            return backend.load_with(job.model, fitted, on_progress=on_progress, on_fetch=on_progress)

        return with_most_rows(load, num_rows)


def _workload(kinds: list[RowKind], max_rows: int) -> Workload:
    workloads = [workload for kind in kinds if (workload := kind.workload(max_rows)) is not None]
    return Workload(
        batch_size=max(workload.batch_size for workload in workloads),
        prompt_tokens=max(workload.prompt_tokens for workload in workloads),
        new_tokens=max(workload.new_tokens for workload in workloads),
    )


def _answer(
    streamed: StreamedModel,
    kinds: list[RowKind],
    write: WriteResult,
    progress: _JobProgress,
    seed: int | None,
) -> None:
    if progress.is_shown:
        note(streamed.plan.explain() + "\n")
    if seed is not None:
        backend.manual_seed(seed)
    with StatusLine(progress.line, shown=progress.is_shown):
        for kind in kinds:
            kind.run(streamed, write, progress.update)
    if progress.is_shown:
        note(streamed.report().explain())


class _JobProgress:
    """The progress of a job as a line: for the terminal, or every few seconds for a log."""

    def __init__(self, num_rows: int, num_done_before: int, *, is_shown: bool) -> None:
        self.is_shown = is_shown
        self._num_rows, self._num_done_before = num_rows, num_done_before
        self._latest: Progress | None = None
        self._last_log_s = perf_counter()

    def update(self, progress: Progress) -> None:
        self._latest = progress
        if self.is_shown and not sys.stderr.isatty() and perf_counter() - self._last_log_s >= _LOG_EVERY_S:
            self._last_log_s = perf_counter()
            note(self.line())

    def line(self) -> str:
        latest = self._latest
        if latest is None:
            return f"{self._num_done_before}/{self._num_rows} rows · waiting for the first weights"
        left = "" if latest.eta_s is None else f" · at most {format_seconds(latest.eta_s)} left"
        num_done = self._num_done_before + latest.done
        return f"{num_done}/{self._num_rows} rows · {_describe_sweep(latest)}{left}"


def _describe_sweep(progress: Progress) -> str:
    if isinstance(progress, backend.BatchProgress):
        return f"{progress.tokens}/{progress.most_tokens} tokens · sweep {progress.sweeps}"
    unit = f" · unit {progress.unit}/{progress.units}" if progress.units else ""
    return f"sweep {progress.sweep + 1}/{progress.sweeps}{unit}"
