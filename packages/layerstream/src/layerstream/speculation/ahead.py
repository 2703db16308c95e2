"""Keep drafting while a sweep verifies earlier tokens.

The draft assumes that its likeliest path is right. If it is not, the work is lost, but the sweep was waiting
for weights anyway.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .drafts import GoOn, RankTokens

_LEAST_WAITING = 0.3
"""A sweep that waits less than this share of its time is slowed down more by a draft than it gains."""

_FORGETTING = 0.8
"""Older sweeps count less: the weight of a sweep falls by this factor with each later one."""


@dataclass(slots=True)
class WaitShare:
    """How much of the sweeps' time was waiting for weights."""

    _waits_s: float = 0.0
    _sweeps_s: float = 0.0

    def record(self, *, wait_s: float, sweep_s: float) -> None:
        """Note a sweep of `sweep_s` seconds, `wait_s` of which it waited."""
        self._waits_s = _FORGETTING * self._waits_s + wait_s
        self._sweeps_s = _FORGETTING * self._sweeps_s + sweep_s

    @property
    def is_large(self) -> bool:
        """Whether drafting during a sweep pays; assumed before the first one."""
        return not self._sweeps_s or self._waits_s / self._sweeps_s >= _LEAST_WAITING


@contextmanager
def drafting_on(go_on: GoOn, size: int, rank: RankTokens) -> Iterator[None]:
    """Let a draft `go_on` in a thread of its own, up to `size` tokens, until the context ends.

    Leaving the context waits for the forward that the draft is in.

    Raises:
        BaseException: what the draft raised.
    """
    is_over, errors = threading.Event(), []

    def work() -> None:
        try:
            go_on(size, rank, is_over.is_set)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), name="layerstream-draft", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    if errors:
        raise errors[0]
