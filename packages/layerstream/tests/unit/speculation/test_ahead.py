"""Drafting in a thread of its own while a sweep runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from layerstream.speculation.ahead import WaitShare, drafting_on
from layerstream.speculation.drafts import RankTokens


class Drafting:
    """A draft that goes on until it is told to end, or fails."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.begun = threading.Event()
        self.thread: threading.Thread | None = None
        self.size = 0

    def go_on(self, size: int, rank: RankTokens, is_over: Callable[[], bool]) -> None:
        self.thread, self.size = threading.current_thread(), size
        self.begun.set()
        while not is_over():
            if self.error is not None:
                raise self.error


def test_the_draft_goes_on_until_the_sweep_has_ended() -> None:
    draft = Drafting()
    with drafting_on(draft.go_on, 5, lambda *_: []):
        assert draft.begun.wait(60)
    assert draft.size == 5
    assert draft.thread is not None and draft.thread is not threading.current_thread()
    assert not draft.thread.is_alive()


def test_what_the_draft_raises_comes_after_the_sweep() -> None:
    draft, swept = Drafting(MemoryError("no room")), []
    with pytest.raises(MemoryError, match="no room"), drafting_on(draft.go_on, 5, lambda *_: []):
        assert draft.begun.wait(60)
        swept.append(1)
    assert swept


def test_the_draft_ends_when_the_sweep_fails() -> None:
    draft = Drafting()
    with pytest.raises(KeyboardInterrupt), drafting_on(draft.go_on, 5, lambda *_: []):
        raise KeyboardInterrupt
    assert draft.thread is not None and not draft.thread.is_alive()


def test_sweeps_that_hardly_wait_are_left_alone() -> None:
    share = WaitShare()
    assert share.is_large
    for _ in range(10):
        share.record(wait_s=0.1, sweep_s=1.0)
    assert not share.is_large
    for _ in range(10):
        share.record(wait_s=0.9, sweep_s=1.0)
    assert share.is_large
