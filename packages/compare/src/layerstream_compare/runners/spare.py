"""Keep one worker ready: a process that has done its imports and waits for its case.

Each case still has a process of its own, which no other case used. Only the wait for its imports is gone.
The spare computes nothing, but its start takes a core for seconds: its owner decides when that disturbs
nobody.

Invariants, with the test that holds them:
1. There is at most one spare (`test_there_is_never_more_than_one_spare`).
2. It ends with `close`, after its idle time and with this process (`test_spare_ends_...`).
3. A case gets the same events from it as from a cold worker (`test_case_gets_the_same_events_warm_and_cold`).
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import psutil

from ..case import Case
from ..events import Event
from .isolate import WORKER_COMMAND, StartedWorker, follow_worker, start_worker, worker_environment

IDLE_LIMIT_S = 180.0
"""A spare that nobody needed for this long ends: it holds a few hundred MiB."""

LEAST_FREE_BYTES = 2 * 1024**3
"""No spare is started with less free memory than this. A spare takes it from the models to be measured."""


_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where a control group keeps its memory's limit and use, by version."""


def free_bytes() -> int:
    """Return the memory that is free now; in a control group, no more than its limit leaves.

    layerstream has the same figure, but in a module that loads torch.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        try:
            left = int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii"))
        except (OSError, ValueError):  # no such control group, or no limit
            continue
        free = min(free, max(left, 0))
    return free


class SpareWorker:
    """Runs cases in processes of their own, and keeps one such process ready between them."""

    def __init__(
        self,
        *,
        worker_command: Sequence[str] = WORKER_COMMAND,
        idle_limit_s: float = IDLE_LIMIT_S,
        least_free_bytes: int = LEAST_FREE_BYTES,
    ) -> None:
        """Prepare; nothing is started before `warm_up`.

        Args:
            worker_command: program and arguments of a worker.
            idle_limit_s: how long a spare waits for a case before it ends.
            least_free_bytes: start no spare if less memory than this is free.
        """
        self._command = tuple(worker_command)
        self._idle_limit_s = idle_limit_s
        self._least_free_bytes = least_free_bytes
        self._lock = threading.Lock()
        self._spare: StartedWorker | None = None
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the spare, or None if there is none."""
        spare = self._spare
        return None if spare is None else spare.process.pid

    def warm_up(self) -> bool:
        """Start a spare unless there is one; give it its whole idle time again.

        Returns:
            True if there is a spare now; False if too little memory is free or it cannot be started.
        """
        with self._lock:
            if self._spare is not None and not self._spare.has_exited():
                self._restart_timer()
                return True
            self._end()
            if free_bytes() < self._least_free_bytes:
                return False
            try:
                self._spare = start_worker(self._command)
            except OSError:
                return False
            self._restart_timer()
            return True

    def run(self, case: Case, *, heartbeat_s: float | None = None) -> Generator[Event, None, None]:
        """Run `case` in the spare, or in a new process if there is no spare that fits it.

        The events and the meaning of closing the iterator are those of `run_isolated`.

        Args:
            case: the case to run.
            heartbeat_s: see `run_isolated`.
        """
        yield Event(case=case, kind="started", data={})
        yield from follow_worker(case, lambda: self._take(case), heartbeat_s=heartbeat_s)

    def close(self) -> None:
        """End the spare, if there is one. A case that runs is not touched."""
        with self._lock:
            self._end()

    def _take(self, case: Case) -> StartedWorker:
        """Return the spare, or a new worker where there is none, it has died or its environment does not fit.

        Raises:
            OSError: no worker can be started.
        """
        with self._lock:
            spare, self._spare = self._spare, None
            self._stop_timer()
        if spare is not None:
            if not spare.has_exited() and spare.environment == worker_environment(case):
                return spare
            spare.end()
        return start_worker(self._command, case)

    def _end(self) -> None:
        self._stop_timer()
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def _restart_timer(self) -> None:
        self._stop_timer()
        self._timer = threading.Timer(self._idle_limit_s, self._end_idle, args=(self._spare,))
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _end_idle(self, idle: StartedWorker) -> None:
        with self._lock:
            # a case may have taken it in the moment before
            if self._spare is idle:
                self._end()
