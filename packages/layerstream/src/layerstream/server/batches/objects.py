"""Files and batches as OpenAI's own types: what a client of theirs reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from openai.types import Batch, BatchError, BatchRequestCounts, BatchUsage, FileObject
from openai.types.batch import Errors
from openai.types.batch_usage import InputTokensDetails, OutputTokensDetails

from .values import InputError, StoredBatch, StoredFile


def file_object(stored: StoredFile) -> FileObject:
    """Return a file as OpenAI's object."""
    return FileObject(
        id=stored.id,
        bytes=stored.num_bytes,
        created_at=stored.created_at,
        filename=stored.name,
        object="file",
        purpose=cast(Any, stored.purpose),
        status="processed",
    )


def batch_object(stored: StoredBatch) -> Batch:
    """Return a batch as OpenAI's object."""
    return Batch(
        id=stored.id,
        object="batch",
        endpoint=stored.endpoint,
        input_file_id=stored.input_file_id,
        completion_window=stored.completion_window,
        metadata=None if stored.metadata is None else dict(stored.metadata),
        status=cast(Any, stored.status),
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        in_progress_at=stored.in_progress_at,
        finalizing_at=stored.finalizing_at,
        completed_at=stored.completed_at,
        failed_at=stored.failed_at,
        expired_at=stored.expired_at,
        cancelling_at=stored.cancelling_at,
        cancelled_at=stored.cancelled_at,
        request_counts=BatchRequestCounts(
            total=stored.total, completed=stored.completed, failed=stored.failed
        ),
        usage=_usage(stored),
        output_file_id=stored.output_file_id,
        error_file_id=stored.error_file_id,
        errors=Errors(object="list", data=[_error(error) for error in stored.errors])
        if stored.errors
        else None,
    )


def _usage(stored: StoredBatch) -> BatchUsage:
    return BatchUsage(
        input_tokens=stored.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=stored.cached_tokens),
        output_tokens=stored.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=stored.input_tokens + stored.output_tokens,
    )


def page_of(objects: Sequence[FileObject | Batch], *, has_more: bool) -> dict[str, Any]:
    """Return one page of a list as OpenAI's clients follow it."""
    return {
        "object": "list",
        "data": [each.model_dump(mode="json") for each in objects],
        "first_id": objects[0].id if objects else None,
        "last_id": objects[-1].id if objects else None,
        "has_more": has_more,
    }


def _error(error: InputError) -> BatchError:
    return BatchError(code=error.code, message=error.message, line=error.line, param=error.param)
