"""How much memory to reserve for conversations: the longest context that the model and the budget allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import BudgetTooSmallError, PlanError
from ..spec.options import LoadOptions, Workload
from . import backend
from .printing import loading_status

if TYPE_CHECKING:
    from ..model import StreamedModel

CONTEXTS = (4096, 2048, 1024)
"""Default contexts: the first that the budget has room for."""

NEW_TOKENS = 512
"""The longest answer by default, and at most half of the context."""


def workloads_for(
    context_tokens: int | None, max_new_tokens: int | None, *, limit: int | None, batch_size: int = 1
) -> list[Workload]:
    """Return the workloads to try, the largest first.

    Args:
        context_tokens: how many tokens to reserve memory for; None tries several.
        max_new_tokens: how many of them an answer may have.
        limit: the most that the model can see; None if it has no limit.
        batch_size: how many conversations at once.

    Raises:
        PlanError: the context is longer than the model's, or has no room for a message.
    """
    if context_tokens is not None and limit is not None and context_tokens > limit:
        raise PlanError(
            f"--context-tokens {context_tokens} is more than the {limit} tokens that this model can see"
        )
    contexts = sorted({min(each, limit or each) for each in CONTEXTS}, reverse=True)
    if context_tokens is not None:
        contexts = [context_tokens]
    if max_new_tokens is not None and max_new_tokens >= contexts[0]:
        raise PlanError(
            f"--max-new-tokens {max_new_tokens} leaves no room for a message in a context of {contexts[0]} "
            "tokens: give fewer, or more --context-tokens"
        )
    workloads = []
    for context in contexts:
        new_tokens = min(NEW_TOKENS, context // 2) if max_new_tokens is None else max_new_tokens
        if new_tokens < context:
            workloads.append(
                Workload(batch_size=batch_size, prompt_tokens=context - new_tokens, new_tokens=new_tokens)
            )
    return workloads


def load_for_largest(
    model: str, options: LoadOptions, workloads: Sequence[Workload], *, shows_status: bool
) -> tuple[StreamedModel, Workload]:
    """Load the model for the first of `workloads` that the budget has room for; return both.

    With a draft, the model's own options reserve more than this.

    Raises:
        BudgetTooSmallError: it has room for none of them.
    """
    backend.download_weights(model, options, shown=shows_status)
    with loading_status(shown=shows_status) as on_progress:
        for workload in workloads[:-1]:
            try:
                sized = replace(options, workload=workload)
                return backend.load_with(
                    model, sized, on_progress=on_progress, on_fetch=on_progress
                ), workload
            except BudgetTooSmallError:
                continue
        sized = replace(options, workload=workloads[-1])
        return backend.load_with(model, sized, on_progress=on_progress, on_fetch=on_progress), workloads[-1]
