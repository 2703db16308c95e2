"""What a streamed model moves and waits for, told while it happens.

Worker's side. It sees layerstream's public names only. Spans are recorded on several threads; they are told on the one that
computes, which is the one that tells of tokens too, so that lines never mix.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import layerstream as ls

Tell = Callable[..., None]
"""Called with a kind and its data."""

_TELL_EVERY_S = 0.1


class LiveTimeline:
    """The timeline of one streamed model."""

    def __init__(self, streamed: ls.StreamedModel) -> None:
        """Know the model; nothing is listened to yet."""
        self._streamed = streamed

    @contextmanager
    def told_to(self, tell: Tell) -> Iterator[None]:
        """Tell the plan at once (`plan`), then spans in batches (`spans`) until the context ends.

        A span is a list: activity (`read`, `copy`, `wait`, `compute`), the unit's place in the visiting order, sweep, start and
        end in seconds after this context began, bytes.
        """
        tell("plan", plan=plan_record(self._streamed.plan))
        start_s = told_s = time.perf_counter()
        waiting: list[list[Any]] = []

        def flush() -> None:
            nonlocal told_s
            told_s = time.perf_counter()
            if spans := waiting[:]:
                del waiting[: len(spans)]
                tell("spans", spans=spans)

        def listen(span: ls.Span) -> None:
            begin, end = round(span.start_s - start_s, 6), round(span.end_s - start_s, 6)
            waiting.append([span.activity.value, span.unit_index, span.sweep, begin, end, span.num_bytes])
            if span.activity is ls.Activity.COMPUTE and time.perf_counter() - told_s > _TELL_EVERY_S:
                flush()

        stop = self._streamed.timeline.subscribe(listen)
        try:
            yield
        finally:
            stop()
            flush()


def plan_record(plan: ls.PlacementPlan) -> dict[str, Any]:
    """Return a plan as JSON-ready data: its fields, enumerations by their values."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(plan), default=lambda value: value.value))
    return record
