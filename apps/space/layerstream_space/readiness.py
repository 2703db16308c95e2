"""Keep one worker ready for the next case while a page is open and somebody is using it.

The imports of a worker take longer than everything else before the first word, so a spare does them in the
pauses: when a page is opened or its controls are used, and while a case measures agreement, which is not
timed. Never while a case is timed: the start would take processor time from it. And never after Stop or once
no page is open.

It knows neither gradio nor what a case is about.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from time import monotonic

from layerstream_compare import Case, Event, SpareWorker

UNTIMED_PHASE = "quality"
"""The last phase of a case. All times and memory figures are taken before it."""

_LATE_S = 5.0
"""What a page asked just before it was closed may arrive this much later, on a busy machine."""


class Readiness:
    """Runs cases with a spare worker, and decides when there is one."""

    def __init__(self, spare: SpareWorker, *, heartbeat_s: float) -> None:
        """Create it; nothing is started yet.

        Args:
            spare: runs the cases.
            heartbeat_s: the longest silence of a case.
        """
        self._spare = spare
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._pages: set[str] = set()
        self._closed_at_s: dict[str, float] = {}
        self._num_timed = 0
        self._is_stopped = False
        # a page was used while a case was timed; after a stop, the case takes a moment to end
        self._is_asked_for = False

    def page_used(self, session: str) -> None:
        """Note that a visitor has opened a page or uses its controls; a case may come soon.

        Args:
            session: tells the page from others.
        """
        with self._lock:
            if session in self._just_closed():
                return
            self._pages.add(session)
            self._is_stopped, self._is_asked_for = False, self._num_timed > 0
        self._get_ready()

    def page_closed(self, session: str) -> None:
        """Note that a page is gone. With the last one goes the spare."""
        with self._lock:
            self._pages.discard(session)
            self._closed_at_s = {**self._just_closed(), session: monotonic()}
            is_last = not self._pages
        if is_last:
            self._spare.close()

    def stopped(self) -> None:
        """Note that a visitor has stopped a run: no spare is left, nor started until somebody uses a page."""
        with self._lock:
            # the case that is being stopped may still reach its last phase
            self._is_stopped, self._is_asked_for = True, False
        self._spare.close()

    def close(self) -> None:
        """End the spare, and start none any more for the pages that are open."""
        with self._lock:
            self._pages.clear()
        self._spare.close()

    def run_case(self, case: Case) -> Generator[Event, None, None]:
        """Run `case`, in the spare if there is one; get the next spare ready when this disturbs nothing."""
        is_timed = self._count(timed=True)
        with self._lock:
            self._is_stopped = False
        try:
            with closing(self._spare.run(case, heartbeat_s=self._heartbeat_s)) as events:
                for event in events:
                    if is_timed and event.kind == "phase" and event.data.get("phase") == UNTIMED_PHASE:
                        is_timed = self._count(timed=False)
                        self._get_ready()
                    yield event
        finally:
            if is_timed:
                self._count(timed=False)
            if self._is_asked_for:
                self._get_ready()

    def run_ended(self) -> None:
        """Note that a run has come to its own end: the visitor may well start another."""
        self._get_ready()

    def _just_closed(self) -> dict[str, float]:
        """Return the pages that were closed a moment ago, and when; the lock is held."""
        now_s = monotonic()
        return {page: at_s for page, at_s in self._closed_at_s.items() if now_s - at_s < _LATE_S}

    def _count(self, *, timed: bool) -> bool:
        with self._lock:
            self._num_timed += 1 if timed else -1
        return timed

    def _get_ready(self) -> None:
        with self._lock:
            # under the lock, so that no page closes and no timed case begins in between
            if self._pages and self._num_timed == 0 and not self._is_stopped:
                self._is_asked_for = False
                self._spare.warm_up()
