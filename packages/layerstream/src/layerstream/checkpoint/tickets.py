"""What is asked of the disk reader, and its promise.

Room: bytes. It knows places in files and in memory. It deliberately knows no file descriptors and no queue; the reader does.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import LayerstreamError, StreamClosedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """Bytes of one file and where they go: either to `target`, or chunk by chunk to `deliver`.

    Attributes:
        path: the file.
        offset: the first byte.
        num_bytes: how many.
        target: writable memory of exactly `num_bytes`; the bytes land there and nothing beside it is touched.
        address: the memory address of `target`. Congruent to `offset` modulo 4096, the read is free of copies.
        deliver: called on a reader thread with a chunk, valid during the call only, and its first byte's place in the request
            (a multiple of 64). Chunks come in any order and several at a time.
    """

    path: str
    offset: int
    num_bytes: int
    target: memoryview | None = None
    address: int = 0
    deliver: Callable[[memoryview, int], None] | None = None

    def __post_init__(self) -> None:
        """Check that the request is of one of the two kinds, and the address true: a wrong one would overwrite other memory."""
        assert (self.target is None) != (self.deliver is None), "give either a target or a deliver"
        assert min(self.offset, self.num_bytes) >= 0, (self.offset, self.num_bytes)
        if self.target is not None and self.num_bytes:
            assert self.target.nbytes == self.num_bytes, (self.target.nbytes, self.num_bytes)
            assert ctypes.addressof(ctypes.c_char.from_buffer(self.target)) == self.address, (
                "the address is not the target's"
            )


class ReadTicket:
    """The promise of a set of reads.

    Once `done`, no reader thread touches the targets any more, whether the reads succeeded, failed or were cancelled. The one
    exception: a read that the system did not answer when the reader was closed; its targets' memory is kept until it is.

    Attributes:
        num_bytes: the bytes asked for.
        num_jobs: the chunks they were cut into.
        started_s: `perf_counter` when the first read began; 0.0 before that.
        ended_s: `perf_counter` when the last one ended; 0.0 before that.
        jobs_left: the reads not over yet.
    """

    def __init__(self, num_bytes: int, num_jobs: int) -> None:
        """Promise `num_jobs` jobs; with none the ticket is done at once."""
        self.num_bytes = num_bytes
        self.num_jobs = num_jobs
        self.started_s = 0.0
        self.ended_s = 0.0
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self.jobs_left = num_jobs
        self._error: LayerstreamError | None = None
        self._callbacks: list[Callable[[], None]] = []
        if num_jobs == 0:
            self.started_s = self.ended_s = time.perf_counter()
            self._finished.set()

    @property
    def done(self) -> bool:
        """Whether nothing is left to be read."""
        return self._finished.is_set()

    @property
    def error(self) -> LayerstreamError | None:
        """What went wrong first; None while nothing has."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the reads; return False when `timeout` seconds pass first.

        Raises:
            ReadFailedError: when a read failed; with `path` and `offset`, its cause chained.
            StreamClosedError: when the ticket was cancelled or the reader closed.
        """
        if not self._finished.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def cancel(self) -> None:
        """Begin no more reads; those under way end by themselves, and `done` comes after them."""
        self.fail(StreamClosedError("the read was cancelled"))

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the ticket is done: on a reader thread, or at once when it is done already."""
        with self._lock:
            if not self._finished.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def begin(self) -> bool:
        """Note the first job's start; return False when the job need not run (called by the reader)."""
        with self._lock:
            if not self.started_s:
                self.started_s = time.perf_counter()
            return self._error is None

    def fail(self, error: LayerstreamError) -> None:
        """Note the first error; the reader begins no more of the ticket's jobs (called by the reader)."""
        with self._lock:
            if self._error is None and not self._finished.is_set():
                self._error = error

    def end(self, num_jobs: int = 1) -> None:
        """Count jobs that are over, run or not (called by the reader)."""
        with self._lock:
            # A close() that gave up on a hanging read has ended the ticket before that read comes back.
            if self._finished.is_set():
                return
            self.jobs_left -= num_jobs
            if self.jobs_left > 0:
                return
            self.ended_s = time.perf_counter()
            self._finished.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            _call_guarded(callback)


def _call_guarded(callback: Callable[[], None]) -> None:
    """Call `callback`; its error goes to `threading.excepthook`, for it must not take the reader thread with it."""
    try:
        callback()
    except Exception:  # noqa: BLE001
        kind, error, trace = sys.exc_info()
        assert kind is not None
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, threading.current_thread())))
