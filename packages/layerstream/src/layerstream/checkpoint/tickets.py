"""A request to the disk reader, and the ticket with which to wait for its completion.

Room: bytes. It knows places in files and in memory, but no file descriptors and no queue.
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
        num_bytes: the number of bytes.
        target: writable memory of exactly `num_bytes`; the bytes land there and no other memory is touched.
        address: the memory address of `target`. If it is congruent to `offset` modulo 4096, the read needs no
            copy.
        deliver: called on a reader thread with a chunk, which is valid only during the call, and the place of
            its first byte in the request (a multiple of 64). Chunks come in any order and several at a time.
    """

    path: str
    offset: int
    num_bytes: int
    target: memoryview | None = None
    address: int = 0
    deliver: Callable[[memoryview, int], None] | None = None

    def __post_init__(self) -> None:
        """Check that exactly one destination is given and that the address is right.

        A wrong address would overwrite other memory.
        """
        assert (self.target is None) != (self.deliver is None), "give either target or deliver"
        assert min(self.offset, self.num_bytes) >= 0, (self.offset, self.num_bytes)
        if self.target is not None and self.num_bytes:
            assert self.target.nbytes == self.num_bytes, (self.target.nbytes, self.num_bytes)
            assert ctypes.addressof(ctypes.c_char.from_buffer(self.target)) == self.address, (
                "the address is not the target's"
            )


class ReadTicket:
    """The progress of a set of reads.

    Once it is `done`, no reader thread touches the targets any more, whether the reads succeeded, failed or
    were cancelled. The one exception is a read that the system had not completed when the reader was closed:
    its targets' memory is kept until it completes.

    Attributes:
        num_bytes: the requested bytes.
        num_jobs: the number of chunks they were cut into.
        started_s: `perf_counter` when the first read began; 0.0 before.
        ended_s: `perf_counter` when the last read ended; 0.0 before.
        jobs_left: the number of reads that have not ended.
    """

    def __init__(
        self,
        num_bytes: int,
        num_jobs: int,
        *,
        before: Callable[[], None] | None = None,
        on_done: Callable[[ReadTicket], None] | None = None,
    ) -> None:
        """Expect `num_jobs` jobs; without any, the ticket is done at once.

        Args:
            num_bytes: the requested bytes.
            num_jobs: the number of chunks they were cut into.
            before: called on the reader thread before each job.
            on_done: called with the ticket when its last job has ended; not called without jobs.
        """
        self.num_bytes = num_bytes
        self.num_jobs = num_jobs
        self.started_s = 0.0
        self.ended_s = 0.0
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self.jobs_left = num_jobs
        self._error: LayerstreamError | None = None
        self._before, self._on_done = before, on_done
        if num_jobs == 0:
            self.started_s = self.ended_s = time.perf_counter()
            self._finished.set()

    @property
    def done(self) -> bool:
        """Whether all reads have ended."""
        return self._finished.is_set()

    @property
    def error(self) -> LayerstreamError | None:
        """The first error; None as long as there is none."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the reads; return False when `timeout` seconds pass first.

        Raises:
            ReadFailedError: a read failed; with `path` and `offset`, and its cause chained.
            StreamClosedError: the ticket was cancelled or the reader closed.
        """
        if not self._finished.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def cancel(self) -> None:
        """Start no further reads; the ticket is done when those in progress have ended."""
        self.fail(StreamClosedError("the read was cancelled"))

    def begin(self) -> bool:
        """Wait for `before`; return False if the job need not run. Record the first start. For the reader."""
        if self._error is None and self._before is not None:
            self._before()
        with self._lock:
            if not self.started_s:
                self.started_s = time.perf_counter()
            return self._error is None

    def fail(self, error: LayerstreamError) -> None:
        """Record the first error; the reader then starts no further job of the ticket. For the reader."""
        with self._lock:
            if self._error is None and not self._finished.is_set():
                self._error = error

    def end(self, num_jobs: int = 1) -> None:
        """Count jobs that have ended, whether they ran or not. For the reader."""
        with self._lock:
            # A close() that gave up on a hanging read has already ended the ticket when that read returns.
            if self._finished.is_set():
                return
            self.jobs_left -= num_jobs
            if self.jobs_left > 0:
                return
            self.ended_s = time.perf_counter()
            self._finished.set()
        if self._on_done is not None:
            _call_guarded(self._on_done, self)


def _call_guarded(callback: Callable[[ReadTicket], None], ticket: ReadTicket) -> None:
    """Call `callback`; its error goes to `threading.excepthook`, as it must not end the reader thread."""
    try:
        callback(ticket)
    except Exception:  # noqa: BLE001
        kind, error, trace = sys.exc_info()
        assert kind is not None
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, threading.current_thread())))
