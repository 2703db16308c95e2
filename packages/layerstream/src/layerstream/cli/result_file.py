"""The results of a job on disk: they survive their process, and a file never holds two jobs unmarked.

A result is one line. One call writes it, newline included, and syncs it to disk before the next row's. A
process that is killed therefore leaves whole lines, and at most one torn line at the end. The next start cuts
that one off and continues with the rows that have no line. Results are in the order in which they were ready.

The file starts with a header that says what made it. A start compares it with its own before it changes
anything. Where lines have to go, a new file is written next to the old one and takes its place at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import JobError
from .contents import Contents, Fate, decide_contents
from .job_header import JobHeader
from .jobs import JobRow
from .locked_file import LockedFile
from .stored_results import (
    Matches,
    StoredLines,
    StoredResult,
    error_text,
    match_results,
    read_stored,
    reading,
)

_OPTIONS = (
    "Give another file for the results, --restart to start afresh (the old results are kept under another "
    "name), or --resume-anyway to keep them and go on (a line in the file marks where)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """How to continue an existing results file.

    Attributes:
        restart: start afresh; the old results are kept under another name.
        anyway: go on although the results were made by another model, settings or versions.
        retry_errors: run rows again whose result is an error.
    """

    restart: bool = False
    anyway: bool = False
    retry_errors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRow:
    """A row whose result is an error.

    Attributes:
        number: its line.
        id: its id.
        reason: the error's text.
    """

    number: int
    id: Any
    reason: str


class ResultFile:
    """The results of a job; a context manager that locks the file.

    Attributes:
        done: the numbers of the rows that have a result.
        failed: those whose result is an error, by number.
        notes: what happened to results that were there, for people.
        job: what makes the results from now on; None if there is nothing to do.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[JobRow],
        describe: Callable[[], JobHeader],
        resume: Resume = Resume(),
    ) -> None:
        """Open or create `path`, and keep the results that belong to `rows` and to the job.

        Args:
            path: the file.
            rows: the job's rows.
            describe: returns what would make the results now; not called if there is nothing to do.
            resume: how to go on with results that are there.

        Raises:
            JobError: the file cannot be opened or is not a results file, another process is writing to it, or
                another job made its results. Nothing has changed then.
        """
        self.done: set[int] = set()
        self.failed: dict[int, FailedRow] = {}
        self.notes: list[str] = []
        self.job: JobHeader | None = None
        self._shown_path = path
        self._file = LockedFile(path)
        try:
            stored = read_stored(self._file.descriptor)
            if rows or stored.lines or stored.problem:
                self.job = describe()
                self._continue(stored, rows, self.job, resume)
        except BaseException:
            self.close()
            raise

    def write(self, row: JobRow, result: Mapping[str, Any]) -> None:
        """Append the result of `row`; it is on disk when this returns.

        Raises:
            JobError: the disk refused it.
        """
        assert row.number not in self.done, "a row has one result"
        self._file.append(_line({"row": row.number, "id": row.id, **result, "digest": row.digest}))
        self._count(row, result.get("error"))

    def close(self) -> None:
        """Close the file and release the lock."""
        self._file.close()

    def __enter__(self) -> ResultFile:
        """Return this file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _continue(self, stored: StoredLines, rows: Sequence[JobRow], job: JobHeader, resume: Resume) -> None:
        if resume.restart:
            self._start_afresh(stored, job)
            return
        self._refuse_another_job(stored, job, resume)
        results = stored.results
        matches = match_results(results, rows)
        self._refuse_other_rows(stored, matches, resume)
        contents = decide_contents(stored, matches, job, retry_errors=resume.retry_errors)
        self._apply(stored, contents)
        for place, row in matches.rows.items():
            error = results[place].error
            if error is None or not resume.retry_errors:
                self._count(row, error)
        self._note_changes(results, matches, resume)

    def _count(self, row: JobRow, error: object) -> None:
        self.done.add(row.number)
        if error is not None:
            reason = error_text(error)
            self.failed[row.number] = FailedRow(number=row.number, id=row.id, reason=reason)

    def _refuse_another_job(self, stored: StoredLines, job: JobHeader, resume: Resume) -> None:
        if stored.problem:
            where, _, reason = stored.problem.partition(": ")
            raise JobError(
                f"{where} of {self._shown_path} is not a result of this job ({reason}): give another file "
                "for the results, or --restart to start afresh (this file is kept under another name)"
            )
        latest = stored.latest_job
        if latest is None or resume.anyway:
            return
        if not latest.command:
            raise JobError(
                f"line 1 of {self._shown_path} is not a result of this job: no line says which model and "
                f"settings made it (it is of an earlier version). {_OPTIONS}"
            )
        if differences := latest.differences(job):
            raise JobError(
                f"something else made the results {self._shown_path} (old -> new): "
                f"{'; '.join(differences)}. {_OPTIONS}"
            )

    def _refuse_other_rows(self, stored: StoredLines, matches: Matches, resume: Resume) -> None:
        num_answers = sum(result.error is None for result in stored.results)
        if num_answers > 1 and not matches.rows and not resume.anyway:
            raise JobError(
                f"none of the {num_answers} results in {self._shown_path} belongs to one of these rows: "
                f"are they the right ones? {_OPTIONS}"
            )

    def _start_afresh(self, stored: StoredLines, job: JobHeader) -> None:
        if stored.results or stored.problem:
            self.notes.append(f"the old results are kept as {self._file.keep_contents()}")
        self._file.replace([job.to_line()])

    def _apply(self, stored: StoredLines, contents: Contents) -> None:
        if not contents.rewrites:
            self._file.truncate(stored.whole_bytes)
            if contents.last is not None:
                self._file.append(contents.last.to_line())
            return
        num_aside = sum(fate is Fate.SET_ASIDE for fate in contents.fates)
        if num_aside:
            kept = self._file.keep_lines(self._lines_aside(stored, contents))
            self.notes.append(f"{_results(num_aside)} of rows that have changed or are gone: kept in {kept}")
        self._file.replace(self._lines_kept(contents))

    def _lines_kept(self, contents: Contents) -> Iterator[bytes]:
        if contents.first is not None:
            yield contents.first.to_line()
        with reading(self._file.descriptor) as lines:
            # a torn line at the end has no fate
            for fate, line in zip(contents.fates, lines, strict=False):
                if isinstance(fate, JobRow):
                    yield _line({**json.loads(line), "row": fate.number, "id": fate.id})
                elif fate is Fate.KEEP:
                    yield line
        if contents.last is not None:
            yield contents.last.to_line()

    def _lines_aside(self, stored: StoredLines, contents: Contents) -> Iterator[bytes]:
        """Yield the lines that are set aside, each below the header of what made it."""
        header: bytes | None = None
        with reading(self._file.descriptor) as lines:
            for content, fate, line in zip(stored.lines, contents.fates, lines, strict=False):
                if isinstance(content, JobHeader):
                    header = line
                elif fate is Fate.SET_ASIDE:
                    if header is not None:
                        yield header
                    header = None
                    yield line

    def _note_changes(self, results: Sequence[StoredResult], matches: Matches, resume: Resume) -> None:
        num_moved = sum(results[place].number != row.number for place, row in matches.rows.items())
        if num_moved:
            self.notes.append(f"{_results(num_moved)} moved with their rows")
        if matches.repaired:
            self.notes.append(f"{_rows(len(matches.repaired))} changed since: done again")
        num_errors = sum(results[place].error is not None for place in matches.rows)
        if resume.retry_errors and num_errors:
            self.notes.append(f"{_rows(num_errors)} with an error: done again")


def _line(result: Mapping[str, Any]) -> bytes:
    return (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _results(number: int) -> str:
    return "1 result" if number == 1 else f"{number} results"


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"
