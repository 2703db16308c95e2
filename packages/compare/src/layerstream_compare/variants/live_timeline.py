"""Emit events about what a streamed model moves and waits for, while it runs.

Runs in the worker. Spans are recorded on several threads but emitted only on the computing thread, which also
emits the tokens, so that lines on the pipe never mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import layerstream as ls

Emit = Callable[..., None]
"""Called with an event's kind and its data."""

_EMIT_EVERY_S = 0.1


class LiveTimeline:
    """The timeline of one streamed model."""

    def __init__(self, streamed: ls.StreamedModel) -> None:
        """Keep the model; recording starts with `emit_to`."""
        self._streamed = streamed

    @contextmanager
    def emit_to(self, emit: Emit) -> Iterator[None]:
        """Emit the plan at once (`plan`), then batches of spans (`spans`) until the context ends.

        With a draft, each sweep after the prompt's is emitted too (`verified`): how many drafted tokens it
        verified, how many in a row were accepted, and how many tokens the answer grew by.

        The plan is the dict of `PlacementPlan.to_dict`. A span is a list: activity (`read`, `copy`, `wait` or
        `compute`), the unit's index in visiting order, sweep, start and end in seconds since the context
        began, bytes.
        """
        emit("plan", plan=self._streamed.plan.to_dict())
        # the report in the end is that of what is emitted, without the warm-up
        self._streamed.reset_report()
        start_s = emitted_s = time.perf_counter()
        pending: list[list[Any]] = []

        def flush() -> None:
            nonlocal emitted_s
            emitted_s = time.perf_counter()
            # other threads may append meanwhile: remove only what is emitted
            if spans := pending[:]:
                del pending[: len(spans)]
                emit("spans", spans=spans)

        def on_span(span: ls.Span) -> None:
            begin, end = round(span.start_s - start_s, 6), round(span.end_s - start_s, 6)
            pending.append([span.activity.value, span.unit_index, span.sweep, begin, end, span.num_bytes])
            if span.activity is ls.Activity.COMPUTE and time.perf_counter() - emitted_s > _EMIT_EVERY_S:
                flush()

        def on_verified(sweep: ls.VerifiedTokens) -> None:
            flush()
            emit("verified", drafted=sweep.drafted, accepted=sweep.accepted, tokens=sweep.tokens)

        unsubscribe = self._streamed.timeline.subscribe(on_span)
        self._streamed.on_verified = on_verified
        try:
            yield
        finally:
            self._streamed.on_verified = None
            unsubscribe()
            flush()
