"""`layerstream batch --ray`: the rows of a job are answered by the workers of a Ray cluster.

Rows are read, checked and encoded here, and results are written here, as without Ray: so what a results file
promises does not depend on what happens to workers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from ..ray.clusters import ClusterSettings, connected
from ..ray.requests import generate_on_ray
from ..ray.workers import Workers
from ..spec.options import LoadOptions
from ..spec.sizes import format_seconds
from .printing import note, working
from .prompt_rows import PromptRows
from .row_job import RowJob, WriteResult, assign_rows, kinds_of
from .terminal import StatusLine

if TYPE_CHECKING:
    from ..uses.batching.requests import GenerationResult
    from .jobs import JobRow

_LOG_EVERY_S = 10.0


def answer_on_ray(
    settings: ClusterSettings,
    job: RowJob,
    options: LoadOptions,
    open_rows: Sequence[JobRow],
    num_rows: int,
    write: WriteResult,
) -> None:
    """Have the open rows of a job answered by the workers of a Ray cluster; see `AnswerRows`.

    Raises:
        PlanError: the cluster cannot be reached, or has no room for such workers.
        StreamError: a worker could not go on.
    """
    kinds = kinds_of(job, options)
    if not assign_rows(open_rows, kinds, write):
        return
    with _connected(settings, shown=not job.quiet) as workers:
        progress = _Progress(num_rows, num_rows - len(open_rows), workers, is_shown=not job.quiet)
        with StatusLine(progress.line, shown=progress.is_shown):
            for kind in kinds:
                assert isinstance(kind, PromptRows)
                if kind.requests:
                    generate_on_ray(
                        kind.requests,
                        model=job.model,
                        options=options,
                        workers=workers,
                        max_rows=job.max_rows,
                        on_result=partial(_write, kind.write_result, write, progress.count),
                    )


def _write(
    write_result: Callable[[WriteResult, GenerationResult], None],
    write: WriteResult,
    count: Callable[[], None],
    result: GenerationResult,
) -> None:
    write_result(write, result)
    count()


@contextmanager
def _connected(settings: ClusterSettings, *, shown: bool) -> Iterator[Workers]:
    with ExitStack() as stack:
        with working("connecting to Ray", shown=shown):
            workers = stack.enter_context(connected(settings))
        yield workers


class _Progress:
    """The progress of all workers as a line: for the terminal, or every few seconds for a log."""

    def __init__(self, num_rows: int, num_done_before: int, workers: Workers, *, is_shown: bool) -> None:
        self.is_shown = is_shown
        self._num_rows, self._num_done_before = num_rows, num_done_before
        self._most_workers = workers.most
        self._num_done = 0
        self._start_s = self._last_log_s = perf_counter()

    def count(self) -> None:
        """Count a row that has its result."""
        if not self._num_done:
            self._last_log_s = perf_counter()  # rows come by the block
        self._num_done += 1
        if self.is_shown and not sys.stderr.isatty() and perf_counter() - self._last_log_s >= _LOG_EVERY_S:
            self._last_log_s = perf_counter()
            note(self.line())

    def line(self) -> str:
        """Return the line."""
        done = self._num_done_before + self._num_done
        named = "1 worker" if self._most_workers == 1 else f"up to {self._most_workers} workers"
        if not self._num_done:
            return f"{done}/{self._num_rows} rows · {named} · waiting for the first block of rows"
        rate = self._num_done / (perf_counter() - self._start_s)
        left = format_seconds((self._num_rows - done) / rate)
        return f"{done}/{self._num_rows} rows · {named} · {rate:.2g} rows/s · about {left} left"
