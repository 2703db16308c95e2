"""Read files in parallel at given places: a few threads that keep the disk busy.

Room: bytes. It knows files, offsets and memory addresses, but no tensors and no dtypes.

Each call of `submit` makes a ticket. Its requests are sorted by place, merged where they are adjacent both on
disk and in memory, and cut into chunks. The threads take chunks from one queue, first come, first served, so
that the disk does not idle between tickets.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from ..errors import LayerstreamError, ReadFailedError, StreamClosedError
from ..spec.sizes import MIB
from .arrivals import open_arriving, wait_for
from .buffers import BounceBuffer
from .files import MAX_ALIGNMENT, Opener, OpenFile, open_buffered, open_direct
from .tickets import ReadRequest, ReadTicket

__all__ = ["DiskReader", "PreparedReads", "ReadRequest", "ReadTicket"]

READER_THREADS = 4
"""The default number of threads, and so of reads in progress at a time."""

CHUNK_BYTES = 8 * MIB
"""The default size of the largest read, and of a thread's buffer when bytes cannot be read in place."""

_LOADING_CHUNK_BYTES = 2 * MIB

# How long close() waits for a read that the kernel does not complete, as on a dead network disk.
_JOIN_TIMEOUT_S = 10.0
# Chunks of a delivery begin at multiples of this, so that no element of any dtype is split.
_DELIVERY_MULTIPLE = 64


@dataclass(slots=True)
class _Run:
    """Bytes that are contiguous on disk and, unless delivered, in memory."""

    path: str
    offset: int
    num_bytes: int
    address: int
    deliver: Callable[[memoryview, int], None] | None
    # What owns the targets' memory: it must stay alive as long as a thread may write to it.
    owners: list[object]
    # Where the bytes are, if not in a file but in memory.
    source_address: int = 0


@dataclass(frozen=True, slots=True)
class PreparedReads:
    """Requests that were sorted, merged and cut once, to be submitted again and again.

    Attributes:
        num_bytes: the requested bytes.
        pieces: the chunks of each run: where they start in it, and their sizes.
    """

    num_bytes: int
    pieces: tuple[tuple[_Run, int, int], ...]


@dataclass(slots=True)
class _Job:
    ticket: ReadTicket
    run: _Run
    start: int
    num_bytes: int


def loading_chunk_bytes(block_bytes: int) -> int:
    """Return the chunk size of a reader that loads weights onto an accelerator.

    All of them pass through its buffers, which must stay small beside `block_bytes`, all blocks together.
    """
    share_bytes = block_bytes // 256 // MAX_ALIGNMENT * MAX_ALIGNMENT
    return min(_LOADING_CHUNK_BYTES, max(4 * MAX_ALIGNMENT, share_bytes))


class DiskReader:
    """A few threads that read files at given places, in order of submission.

    Reads go past the page cache where the file system allows it, and otherwise leave nothing in it. Files are
    opened once and stay open until `close()`. Call it, or use the reader as a context manager: the threads
    keep the reader alive.
    """

    def __init__(
        self,
        *,
        num_threads: int = READER_THREADS,
        chunk_bytes: int = CHUNK_BYTES,
        direct: bool = True,
        opener: Opener | None = None,
    ) -> None:
        """Start the threads; no file is opened yet.

        Args:
            num_threads: the number of reads in progress at a time.
            chunk_bytes: the largest single read; a multiple of 4096, at least 16 KiB.
            direct: try O_DIRECT.
            opener: replaces the function that opens a path and returns its descriptor.
        """
        assert num_threads > 0
        assert chunk_bytes >= 4 * MAX_ALIGNMENT
        assert chunk_bytes % MAX_ALIGNMENT == 0
        self._chunk_bytes = chunk_bytes
        self._opener = opener or (open_direct if direct else open_buffered)
        self._files: dict[str, OpenFile] = {}
        self._row_files: dict[str, OpenFile] = {}
        self._files_lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._in_progress: dict[int, _Job] = {}
        # A plain lock: Ctrl-C could come inside that of a Condition and leave it locked.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._bytes_read = 0
        self._bounces = [BounceBuffer(chunk_bytes) for _ in range(num_threads)]
        self._threads = [
            threading.Thread(
                target=self._work, args=(bounce,), name=f"layerstream-read-{number}", daemon=True
            )
            for number, bounce in enumerate(self._bounces)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> DiskReader:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    @property
    def bytes_read(self) -> int:
        """The bytes that have reached their targets, without those read for alignment."""
        return self._bytes_read

    def prepare(self, requests: Sequence[ReadRequest]) -> PreparedReads:
        """Return `requests` as `submit` reads them, sorted, merged and cut."""
        pieces = [
            (run, start, size) for run in _merge(requests) for start, size in _cut(run, self._chunk_bytes)
        ]
        return PreparedReads(sum(request.num_bytes for request in requests), tuple(pieces))

    def prepare_copy(
        self, source: memoryview, source_address: int, target: memoryview, address: int
    ) -> PreparedReads:
        """Return a copy in memory, of `source` to `target`, as reads: the threads do it in parallel."""
        owners: list[object] = [source.obj, target.obj]
        run = _Run("", 0, target.nbytes, address, None, owners, source_address)
        pieces = tuple((run, start, size) for start, size in _cut(run, self._chunk_bytes))
        return PreparedReads(target.nbytes, pieces)

    def submit(
        self,
        requests: Sequence[ReadRequest] | PreparedReads,
        *,
        before: Callable[[], None] | None = None,
        on_done: Callable[[ReadTicket], None] | None = None,
    ) -> ReadTicket:
        """Queue reads behind all earlier ones and return their ticket at once.

        Args:
            requests: what to read.
            before: called on a reader thread before each read; it may wait until the targets may be changed.
            on_done: called with the ticket, on a reader thread, when all reads have ended; not called when
                there is nothing to read.

        Raises:
            StreamClosedError: the reader is closed.
        """
        reads = requests if isinstance(requests, PreparedReads) else self.prepare(requests)
        ticket = ReadTicket(reads.num_bytes, len(reads.pieces), before=before, on_done=on_done)
        self.queue(ticket, reads)
        return ticket

    def queue(self, ticket: ReadTicket, reads: PreparedReads) -> None:
        """Queue the reads of `ticket` behind all earlier ones; Ctrl-C leaves all of them queued, or none.

        Raises:
            StreamClosedError: the reader is closed.
        """
        jobs = [_Job(ticket, run, start, size) for run, start, size in reads.pieces]
        with self._lock:
            if self._closed:
                raise StreamClosedError("the disk reader is closed; load the model again")
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))

    def was_queued(self, ticket: ReadTicket) -> bool:
        """Return whether the reads of `ticket` were queued, even if Ctrl-C came during `queue`."""
        with self._lock:
            self._changed.notify_all()
            known = (*self._jobs, *self._in_progress.values())
            return bool(ticket.started_s) or any(job.ticket is ticket for job in known)

    def read_now(self, path: str, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset` on this thread, ahead of the queue and through the page cache.

        Meant for a few rows.

        Raises:
            ReadFailedError: the bytes cannot be read; with `path` and `offset`.
            StreamClosedError: the reader is closed.
        """
        wait_for(path, offset + target.nbytes, lambda: self._closed)
        try:
            self._open(path, self._row_files).read_cached(target, offset)
        except OSError as error:
            raise _read_failed(path, offset, target.nbytes, error) from error
        with self._lock:
            self._bytes_read += target.nbytes

    def close(self) -> None:
        """Stop the threads and close the files; unfinished tickets fail with StreamClosedError.

        May be called more than once.
        """
        with self._lock:
            self._closed = True
            dropped = list(self._jobs)
            self._jobs.clear()
            in_progress = list(self._in_progress.values())
            self._changed.notify_all()
        for job in (*dropped, *in_progress):
            job.ticket.fail(StreamClosedError("the disk reader was closed before the read was done"))
        for job in dropped:
            job.ticket.end()
        deadline_s = time.monotonic() + _JOIN_TIMEOUT_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))
        self._release()

    def _release(self) -> None:
        with self._lock:
            hanging = list(self._in_progress.values())
        for job in hanging:
            job.ticket.end(job.ticket.jobs_left)
        if hanging:
            # Closing a descriptor during a read would let the system give its number to another file.
            return
        with self._files_lock:
            for file in (*self._files.values(), *self._row_files.values()):
                file.close()
            self._files.clear()
            self._row_files.clear()

    def _open(self, path: str, files: dict[str, OpenFile]) -> OpenFile:
        with self._files_lock:
            if self._closed:
                raise StreamClosedError("the disk reader is closed; load the model again")
            if path not in files:
                file = OpenFile(open_arriving(path, self._opener))
                if files is self._row_files:
                    file.stop_direct()
                    file.expect_scattered_reads()
                files[path] = file
            return files[path]

    def _work(self, bounce: BounceBuffer) -> None:
        thread_id = threading.get_ident()
        while (job := self._take(thread_id)) is not None:
            try:
                if job.ticket.begin():
                    self._read(job, bounce)
            # Any error, of the disk or of a callback, goes to the threads that wait for the ticket.
            except Exception as error:  # noqa: BLE001
                job.ticket.fail(_job_failed(job, error))
            with self._lock:
                del self._in_progress[thread_id]
            job.ticket.end()
            del job  # while this thread waits, it keeps no target's memory alive

    def _take(self, thread_id: int) -> _Job | None:
        with self._lock:
            # Waits for work: the queue is empty.
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            job = self._in_progress[thread_id] = self._jobs.popleft()
            return job

    def _read(self, job: _Job, bounce: BounceBuffer) -> None:
        run = job.run
        if run.source_address:
            # ctypes releases the interpreter's lock during the copy.
            ctypes.memmove(run.address + job.start, run.source_address + job.start, job.num_bytes)
            return
        offset = run.offset + job.start
        wait_for(run.path, offset + job.num_bytes, lambda: self._closed)
        file = self._open(run.path, self._files)
        if run.deliver is None:
            file.read_into(run.address + job.start, offset, job.num_bytes, bounce)
        else:
            buffer, at = file.read_aside(offset, job.num_bytes, bounce)
            run.deliver(buffer.view(at, job.num_bytes), job.start)
        with self._lock:
            self._bytes_read += job.num_bytes


def _merge(requests: Iterable[ReadRequest]) -> list[_Run]:
    """Return the requests sorted by place, with those merged that are adjacent both on disk and in memory."""
    runs: list[_Run] = []
    for request in sorted(requests, key=lambda request: (request.path, request.offset)):
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.deliver is None
            and request.deliver is None
            and last.path == request.path
            and last.offset + last.num_bytes == request.offset
            and last.address + last.num_bytes == request.address
        ):
            last.num_bytes += request.num_bytes
            if last.owners[-1] is not _owner(request):
                last.owners.append(_owner(request))
        elif request.num_bytes:
            runs.append(
                _Run(
                    request.path,
                    request.offset,
                    request.num_bytes,
                    request.address,
                    request.deliver,
                    [_owner(request)],
                )
            )
    return runs


def _owner(request: ReadRequest) -> object:
    return None if request.target is None else request.target.obj


def _cut(run: _Run, chunk_bytes: int) -> list[tuple[int, int]]:
    """Return the start and size of a run's chunks; the aligned superset of each fits into `chunk_bytes`."""
    if run.deliver is None:
        # Cut at aligned places of the file, so that only the run's two ends are unaligned.
        lead = run.offset % MAX_ALIGNMENT
        cuts = [0, *range(chunk_bytes - lead, run.num_bytes, chunk_bytes), run.num_bytes]
    else:
        step = (chunk_bytes - 2 * MAX_ALIGNMENT) // _DELIVERY_MULTIPLE * _DELIVERY_MULTIPLE
        cuts = [*range(0, run.num_bytes, step), run.num_bytes]
    return [(start, end - start) for start, end in itertools.pairwise(cuts)]


def _job_failed(job: _Job, error: Exception) -> LayerstreamError:
    if isinstance(error, LayerstreamError):
        return error
    return _read_failed(job.run.path, job.run.offset + job.start, job.num_bytes, error)


def _read_failed(path: str, offset: int, num_bytes: int, error: Exception) -> ReadFailedError:
    failure = ReadFailedError(
        f"{num_bytes} bytes at offset {offset} of {path} could not be read: {error}; check the disk, and "
        "that the file is still complete and in place",
        path=path,
        offset=offset,
    )
    failure.__cause__ = error
    return failure
