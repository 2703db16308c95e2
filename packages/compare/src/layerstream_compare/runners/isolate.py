"""Run each case in a fresh process: started by exec, read through its own pipe, killed with all its children.

It does not know what the lines mean (`protocol` does) or what the worker does. The parent
sleeps in the kernel until the worker writes, exits or exceeds its time limit, so that it takes no CPU time
from the measurement.

Invariants, the first two with the test that holds them:
1. The worker's process group does not outlive the iterator (`test_children_of_the_worker_end_with_it`).
2. A case always ends in one measurement (`test_every_misbehaving_worker_becomes_a_failed_measurement`).
3. The group is killed before its leader is reaped: until then no other process can have its id.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Any, NamedTuple

from ..case import Case
from ..events import Event
from ..measurement import Measurement
from ..protocol import LIVE_KINDS, ProtocolError, failed, measurement_of, one_line, parse_line

WORKER_COMMAND = (sys.executable, "-m", "layerstream_compare.worker")
"""Command of a worker. `--events-fd N` is appended; the case is one line of JSON on its standard input."""

STEADY_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
"""Settings with which peaks of equal runs differ by only 1 to 3 MB.

They give one heap, with tensors of 256 KiB or more outside it, so that what loading leaves behind does not
depend on which thread was faster. With a threshold of 1 MiB, 4-bit variants differed by 25 MB."""

_STDERR_LINES = 20
_STDERR_BYTES = 65536
_MAX_LINE_BYTES = 64 * 1024**2
_READ_BYTES = 65536
_EXIT_GRACE_S = 20.0
_POLL_EVERY_S = 0.5


class _TimeLimitError(Exception):
    """The deadline has passed."""


@dataclass(slots=True, kw_only=True)
class StartedWorker:
    """A worker process, with or without its case.

    Attributes:
        process: the worker's process.
        pipe: reading end of its event pipe.
        stdin: its standard input, a file: a worker that never reads a long prompt must not block the parent.
        stderr: what it printed.
        environment: its environment variables.
        go: writing end of the pipe on which it waits for its case; None once it has the case.
    """

    process: subprocess.Popen[bytes]
    pipe: int
    stdin: IO[bytes]
    stderr: IO[bytes]
    environment: Mapping[str, str]
    go: int | None = None

    def exit_info(self) -> Any:
        """Return how the process exited, without reaping it, or None while it runs."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def has_exited(self) -> bool:
        """Return whether the process has ended."""
        return self.exit_info() is not None

    def give(self, case: Case) -> None:
        """Give the worker its case; it must not have one yet."""
        assert self.go is not None
        _write_case(self.stdin, case)
        go, self.go = self.go, None
        with suppress(BrokenPipeError):  # it has died: reading its events tells how
            os.write(go, b"\n")
        os.close(go)

    def end(self) -> None:
        """Kill the worker and everything it started, and free what it holds here."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.pipe)
        if self.go is not None:
            os.close(self.go)
            self.go = None
        self.stdin.close()
        self.stderr.close()


@dataclass(slots=True, kw_only=True)
class _Listening:
    """A worker that is being listened to.

    Attributes:
        worker: the worker.
        selector: wakes the parent on output and, with `wakes_at_exit`, on exit.
        wakes_at_exit: whether the selector also watches for the process's exit.
        deadline: `time.monotonic()` at which the time limit ends.
        heartbeat_s: see `run_isolated`.
    """

    worker: StartedWorker
    selector: selectors.BaseSelector
    wakes_at_exit: bool
    deadline: float
    heartbeat_s: float | None = None

    @property
    def pipe(self) -> int:
        """Reading end of the worker's event pipe."""
        return self.worker.pipe

    def exit_info(self) -> Any:
        """Return how the process exited, without reaping it, or None while it runs."""
        return self.worker.exit_info()


def run_isolated(
    case: Case, *, worker_command: Sequence[str] = WORKER_COMMAND, heartbeat_s: float | None = None
) -> Generator[Event, None, None]:
    """Run `case` in its own process and yield its events, ending with one `finished` event.

    Closing the iterator kills the worker and everything it started.

    Args:
        case: the case to run.
        worker_command: program and arguments of the worker; `--events-fd N` is appended.
        heartbeat_s: yield a `waiting` event after this many seconds without output, so that a consumer that
            must be able to stop never waits longer; None yields none.
    """
    yield Event(case=case, kind="started", data={})
    yield from follow_worker(case, lambda: start_worker(worker_command, case), heartbeat_s=heartbeat_s)


def follow_worker(
    case: Case, start: Callable[[], StartedWorker], *, heartbeat_s: float | None
) -> Generator[Event, None, None]:
    """Yield a worker's events, ending with one `finished` event; kill it then or when the iterator is closed.

    Args:
        case: the worker's case.
        start: returns the worker; one that waits for its case gets it here.
        heartbeat_s: see `run_isolated`.
    """
    try:
        worker = start()
    except OSError as error:
        measurement = _conclude(case, None, f"the worker cannot be started: {error}", "")
    else:
        try:
            if worker.go is not None:
                worker.give(case)
            with _listening(case, worker, heartbeat_s) as listening:
                last, problem = yield from _listen(case, listening)
            measurement = _conclude(case, last, problem, _tail(worker.stderr))
        finally:
            worker.end()
    yield Event(case=case, kind="finished", data={}, measurement=measurement)


def start_worker(command: Sequence[str], case: Case | None = None) -> StartedWorker:
    """Start a worker, with its case or, without one, as a spare that does its imports and then waits.

    Args:
        command: program and arguments; `--events-fd N` is appended, and `--go-fd N` for a spare.
        case: its case; None for a spare, which gets its case by `StartedWorker.give`.

    Raises:
        OSError: it cannot be started.
    """
    environment = worker_environment(case)
    with ExitStack() as if_it_fails, ExitStack() as the_workers:
        pipe = _pipe(mine=if_it_fails, theirs=the_workers)
        go = None if case is not None else _pipe(mine=if_it_fails, theirs=the_workers, they_read=True)
        stdin = if_it_fails.enter_context(tempfile.TemporaryFile())
        stderr = if_it_fails.enter_context(tempfile.TemporaryFile())
        if case is not None:
            _write_case(stdin, case)
        waits = [] if go is None else ["--go-fd", str(go.theirs)]
        process = subprocess.Popen(
            [*command, "--events-fd", str(pipe.theirs), *waits],
            stdin=stdin,
            stdout=stderr,
            stderr=stderr,
            pass_fds=[end.theirs for end in (pipe, go) if end is not None],
            start_new_session=True,
            env=environment,
        )
        if_it_fails.pop_all()
    return StartedWorker(
        process=process,
        pipe=pipe.mine,
        stdin=stdin,
        stderr=stderr,
        environment=environment,
        go=None if go is None else go.mine,
    )


class _Ends(NamedTuple):
    """The two ends of a pipe."""

    mine: int
    theirs: int


def _pipe(*, mine: ExitStack, theirs: ExitStack, they_read: bool = False) -> _Ends:
    """Return a new pipe; each stack closes one end."""
    reading, writing = os.pipe()
    ends = _Ends(writing, reading) if they_read else _Ends(reading, writing)
    mine.callback(os.close, ends.mine)
    theirs.callback(os.close, ends.theirs)
    return ends


def _write_case(stdin: IO[bytes], case: Case) -> None:
    # parent and worker share the file's position: the worker reads from where the parent leaves it
    stdin.write(case.to_json().encode() + b"\n")
    stdin.seek(0)


@contextmanager
def _listening(case: Case, worker: StartedWorker, heartbeat_s: float | None) -> Iterator[_Listening]:
    with selectors.DefaultSelector() as selector:
        deadline = time.monotonic() + case.time_limit_s
        selector.register(worker.pipe, selectors.EVENT_READ)
        with _exit_watch(worker.process.pid, selector) as wakes_at_exit:
            yield _Listening(
                worker=worker,
                selector=selector,
                wakes_at_exit=wakes_at_exit,
                deadline=deadline,
                heartbeat_s=heartbeat_s,
            )


@contextmanager
def _exit_watch(pid: int, selector: selectors.BaseSelector) -> Iterator[bool]:
    """Make the selector wake when the process exits; yield False if the system does not support that."""
    try:
        watch = os.pidfd_open(pid)
    except (AttributeError, OSError):
        yield False
        return
    try:
        selector.register(watch, selectors.EVENT_READ)
        yield True
    finally:
        os.close(watch)


def worker_environment(case: Case | None) -> dict[str, str]:
    """Return a worker's environment: the parent's, plus settings that make memory and threads repeatable.

    A spare, which has no case yet, gets that of a case which leaves the threads to torch.
    """
    threads = (
        {name: str(case.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if case is not None and case.threads
        else {}
    )
    return {**os.environ, **STEADY_MALLOC, "TOKENIZERS_PARALLELISM": "false", **threads}


def _listen(case: Case, worker: _Listening) -> Generator[Event, None, tuple[dict[str, Any] | None, str]]:
    """Yield live events; return the worker's final message, if any, and what went wrong, if anything."""
    last: dict[str, Any] | None = None
    try:
        for line in _lines(worker):
            if line is None:
                yield Event(case=case, kind="waiting", data={})
                continue
            message = parse_line(line)
            if message["kind"] not in LIVE_KINDS:
                last = message
                break
            kind = message.pop("kind")
            yield Event(case=case, kind=kind, data=message)
        if last is not None:
            # the result is complete: give the worker some time to exit before it is killed
            worker.deadline = time.monotonic() + _EXIT_GRACE_S
        return last, _exit_reason(worker)
    except ProtocolError as error:
        return None, str(error)
    except _TimeLimitError:
        return last, f"time limit of {case.time_limit_s:g} s" if last is None else "the worker did not exit"


def _lines(worker: _Listening) -> Iterator[bytes | None]:
    """Yield the worker's lines, and None at each heartbeat."""
    rest = b""
    while (chunk := _next_chunk(worker)) != b"":
        if chunk is None:
            yield None
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            raise ProtocolError(f"the worker wrote a line of more than {_MAX_LINE_BYTES} bytes")
    if rest:
        reason = _exit_reason(worker)
        raise ProtocolError(f"{reason or 'the worker ended'}, in the middle of a line")


def _next_chunk(worker: _Listening) -> bytes | None:
    """Return the next bytes of the pipe, or None at a heartbeat.

    The bytes are empty at the end of the pipe, and if the pipe is empty and the worker gone.
    """
    silent_until = None if worker.heartbeat_s is None else time.monotonic() + worker.heartbeat_s
    while True:
        if worker.exit_info() is not None:
            # its children may keep the pipe open forever: read only what is in it now
            ready = [key.fd for key, _ in worker.selector.select(timeout=0)]
            return os.read(worker.pipe, _READ_BYTES) if worker.pipe in ready else b""
        if worker.pipe in _wait(worker, silent_until):
            return os.read(worker.pipe, _READ_BYTES)
        if silent_until is not None and time.monotonic() >= silent_until:
            return None


def _wait(worker: _Listening, until: float | None = None) -> list[int]:
    timeout = worker.deadline - time.monotonic()
    if timeout <= 0:
        raise _TimeLimitError
    if until is not None:
        timeout = min(timeout, max(0.0, until - time.monotonic()))
    ready = worker.selector.select(timeout=timeout if worker.wakes_at_exit else min(timeout, _POLL_EVERY_S))
    return [key.fd for key, _ in ready]


def _exit_reason(worker: _Listening) -> str:
    """Wait until the worker has exited and return what went wrong: empty after status 0."""
    if worker.pipe in worker.selector.get_map():
        # a closed pipe would wake the parent again and again
        worker.selector.unregister(worker.pipe)
    while (exited := worker.exit_info()) is None:
        _wait(worker)
    if exited.si_code == os.CLD_EXITED:
        return f"exit status {exited.si_status}" if exited.si_status else ""
    number = int(exited.si_status)
    if number == signal.SIGKILL:
        return "killed (probably out of memory)"
    return f"crashed with signal {number} ({signal.Signals(number).name})"


def _conclude(case: Case, last: dict[str, Any] | None, problem: str, tail: str) -> Measurement:
    if last is None:
        lines = [line for line in tail.splitlines() if line.strip()]
        # the last line of a Python traceback names the exception
        detail = f": {lines[-1].strip()}" if lines and problem.startswith("exit status") else ""
        return failed(case, (problem or "the worker ended without a result") + detail, stderr_tail=tail)
    measurement = measurement_of(case, last, isolation="process")
    if measurement.status == "ok":
        # the result was complete before; a problem on exit is only noted
        facts = {"worker_exit": one_line(problem)} if problem else {}
        return replace(measurement, facts=measurement.facts | facts)
    return replace(measurement, stderr_tail=measurement.stderr_tail or tail)


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _STDERR_BYTES))
    return "\n".join(stderr.read().decode(errors="replace").splitlines()[-_STDERR_LINES:])
