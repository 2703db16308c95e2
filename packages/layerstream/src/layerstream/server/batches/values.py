"""Rows of the store as values. Frozen; they know neither the database nor HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
"""The endpoints that a batch can be for."""

WINDOW = "24h"
"""The one completion window that OpenAI's interface has."""

INPUT_PURPOSE = "batch"
OUTPUT_PURPOSE = "batch_output"

OPEN_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")
"""The states of a batch that has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that the store keeps.

    Attributes:
        number: counts files in the order in which they came.
        id: its name everywhere, on disk too.
        name: what the client calls it; only shown.
        purpose: `"batch"` or `"batch_output"`.
        num_bytes: its size.
        created_at: seconds since 1970.
    """

    number: int
    id: str
    name: str
    purpose: str
    num_bytes: int
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputError:
    """What is wrong with an input file.

    Attributes:
        code: a word that a program can compare.
        message: the same for people.
        line: where, from 1; None if it is about the whole file.
        param: the field of the line that it is about.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch. Every time is in seconds since 1970, and None as long as it has not come.

    Attributes:
        number: counts batches in the order in which they came.
        id: its name for clients.
        endpoint: what answers each of its lines.
        input_file_id: the file of its lines.
        completion_window: as the client gave it.
        metadata: the client's own notes; None if there are none.
        status: its state; see `OPEN_STATUSES` for those of a batch that has not ended.
        ending: the state that follows once its files are written; None until that is certain.
        created_at: when the client asked for it.
        expires_at: when it takes no more lines.
        in_progress_at: when its input was found good.
        finalizing_at: when its last line was answered.
        completed_at: when its files were written.
        failed_at: when its input was found bad.
        expired_at: when it ended because its time was over.
        cancelling_at: when the client cancelled it.
        cancelled_at: when it ended because of that.
        total: its lines.
        completed: lines answered with success.
        failed: lines answered with an error, those that were never tried included.
        input_tokens: tokens of the prompts of the lines answered so far.
        cached_tokens: those of them that came from the prefix cache.
        output_tokens: tokens of the answers.
        output_file_id: the answers; None until they are written, and if there are none.
        error_file_id: the errors, likewise.
        errors: what is wrong with its input.
    """

    number: int
    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: Mapping[str, str] | None
    status: str
    ending: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    total: int
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    output_file_id: str | None
    error_file_id: str | None
    errors: tuple[InputError, ...]

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in OPEN_STATUSES

    @property
    def num_pending(self) -> int:
        """Lines without a result."""
        return self.total - self.completed - self.failed

    def takes_no_line(self, now_s: float) -> bool:
        """Return whether none of its lines will be started any more, so that it can end."""
        if self.status == "in_progress":
            return self.num_pending == 0 or now_s >= self.expires_at
        return self.status in ("finalizing", "cancelling")


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingLine:
    """A line without a result.

    Attributes:
        batch: the number of its batch.
        number: its place in the input file, from 1.
        custom_id: the client's name for it.
        endpoint: what answers it.
        input_file_id: the file it is in.
        offset: where it begins there, in bytes.
        num_bytes: its length.
    """

    batch: int
    number: int
    custom_id: str
    endpoint: str
    input_file_id: str
    offset: int
    num_bytes: int

    @property
    def key(self) -> tuple[int, int]:
        """Its batch and its place: what it is known by while it is answered."""
        return self.batch, self.number
