"""One fresh process a case: started by exec, listened to on a pipe of its own, ended with all its children.

It knows processes, pipes and time limits; what the lines mean is `protocol`'s, what happens in the worker is `worker`'s. The parent
sleeps in the kernel until the worker writes, ends or is late, so that it takes nothing from what is being measured.

Invariants, each with its test:
1. The worker's process group does not outlive the iterator (`test_children_of_the_worker_end_with_it`).
2. A case always ends in one measurement (`test_every_misbehaviour_becomes_a_failed_measurement`).
3. The group is killed before its leader is reaped: until then its number cannot belong to anyone else.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Any

from ..case import Case
from ..events import Event
from ..measurement import Measurement
from ..protocol import LIVE_KINDS, ProtocolError, failed, measurement_of, one_line, parse_line

WORKER_COMMAND = (sys.executable, "-m", "layerstream_compare.worker")
"""What is started for each case; `--events-fd N` follows, the case is one line of JSON on its standard input."""

STEADY_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
"""With these, peaks of equal runs differ by 1 to 3 MB: one heap, and tensors of 256 KiB or more outside of it, so that what a load
leaves behind does not depend on which thread was faster. At 1 MiB, 4-bit variants differed by 25."""

_STDERR_LINES = 20
_STDERR_BYTES = 65536
_LONGEST_LINE_BYTES = 64 * 1024**2
_READ_BYTES = 65536
_LEAVING_S = 20.0
_LOOK_EVERY_S = 0.5


class _LateError(Exception):
    """The deadline passed."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A running worker: its process, the reading end of its pipe, what wakes the parent, and when its time is over."""

    process: subprocess.Popen[bytes]
    pipe: int
    selector: selectors.BaseSelector
    wakes_at_exit: bool
    deadline: float
    heartbeat_s: float | None = None

    def ending(self) -> Any:
        """Return how the process ended, without reaping it, or None while it runs."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def run_isolated(
    case: Case, *, worker_command: Sequence[str] = WORKER_COMMAND, heartbeat_s: float | None = None
) -> Generator[Event, None, None]:
    """Run `case` in a process of its own and yield what happens, ending with one `finished` event.

    Closing the iterator, or an exception in the consumer, ends the worker and everything it started.

    Args:
        case: what to run.
        worker_command: program and arguments of the worker; `--events-fd N` is added.
        heartbeat_s: yield a `waiting` event whenever the worker has told nothing for so long, so that a consumer which must be
            able to stop is never kept waiting longer; None lets it sleep.
    """
    yield Event(case=case, kind="started", data={})
    with tempfile.TemporaryFile() as stderr:
        try:
            with _started(case, worker_command, stderr) as worker:
                worker.heartbeat_s = heartbeat_s
                last, ending = yield from _listen(case, worker)
        except OSError as error:
            last, ending = None, f"the worker cannot be started: {error}"
        measurement = _conclude(case, last, ending, _tail(stderr))
    yield Event(case=case, kind="finished", data={}, measurement=measurement)


@contextmanager
def _started(case: Case, command: Sequence[str], stderr: IO[bytes]) -> Iterator[_Worker]:
    pipe, worker_end = os.pipe()
    with tempfile.TemporaryFile() as told, selectors.DefaultSelector() as selector:
        # a file and not a pipe: a worker that never reads a long prompt must not stop the parent
        told.write(case.to_json().encode() + b"\n")
        told.seek(0)
        try:
            process = subprocess.Popen(
                [*command, "--events-fd", str(worker_end)],
                stdin=told,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(worker_end,),
                start_new_session=True,
                env=worker_environment(case),
            )
        except BaseException:
            os.close(pipe)
            raise
        finally:
            os.close(worker_end)
        try:
            deadline = time.monotonic() + case.time_limit_s
            selector.register(pipe, selectors.EVENT_READ)
            with _exit_watch(process.pid, selector) as wakes_at_exit:
                yield _Worker(
                    process=process,
                    pipe=pipe,
                    selector=selector,
                    wakes_at_exit=wakes_at_exit,
                    deadline=deadline,
                )
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(pipe)


@contextmanager
def _exit_watch(pid: int, selector: selectors.BaseSelector) -> Iterator[bool]:
    """Let the selector wake when the process ends, where the system can; say whether it can."""
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


def worker_environment(case: Case) -> dict[str, str]:
    """Return the environment variables of a worker: the parent's, with memory and threads made repeatable."""
    threads = (
        {name: str(case.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if case.threads else {}
    )
    return {**os.environ, **STEADY_MALLOC, "TOKENIZERS_PARALLELISM": "false", **threads}


def _listen(case: Case, worker: _Worker) -> Generator[Event, None, tuple[dict[str, Any] | None, str]]:
    """Yield live events; return the worker's last message, if any, and how it ended, if not well."""
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
            yield Event(case=case, kind=kind, data=message.pop("data", message))
        if last is not None:
            # what was measured is complete: a worker that cannot end by itself is only helped to
            worker.deadline = time.monotonic() + _LEAVING_S
        return last, _exit_reason(worker)
    except ProtocolError as error:
        return None, str(error)
    except _LateError:
        return last, f"time limit of {case.time_limit_s:g} s" if last is None else "it did not end by itself"


def _lines(worker: _Worker) -> Iterator[bytes | None]:
    """Yield the worker's lines, and None at each heartbeat without one."""
    rest = b""
    while (chunk := _next_chunk(worker)) != b"":
        if chunk is None:
            yield None
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST_LINE_BYTES:
            raise ProtocolError(f"the worker wrote a line of more than {_LONGEST_LINE_BYTES} bytes")
    if rest:
        reason = _exit_reason(worker)
        raise ProtocolError(f"{reason or 'the worker ended'}, in the middle of a line")


def _next_chunk(worker: _Worker) -> bytes | None:
    """Return the next bytes of the pipe; none when it was closed, or is empty and the worker gone; None at a heartbeat."""
    silent_until = None if worker.heartbeat_s is None else time.monotonic() + worker.heartbeat_s
    while True:
        if worker.ending() is not None:
            # its children may hold the pipe open for ever: only what is in it now counts
            ready = [key.fd for key, _ in worker.selector.select(timeout=0)]
            return os.read(worker.pipe, _READ_BYTES) if worker.pipe in ready else b""
        if worker.pipe in _wait(worker, silent_until):
            return os.read(worker.pipe, _READ_BYTES)
        if silent_until is not None and time.monotonic() >= silent_until:
            return None


def _wait(worker: _Worker, until: float | None = None) -> list[int]:
    left = worker.deadline - time.monotonic()
    if left <= 0:
        raise _LateError
    if until is not None:
        left = min(left, max(0.0, until - time.monotonic()))
    ready = worker.selector.select(timeout=left if worker.wakes_at_exit else min(left, _LOOK_EVERY_S))
    return [key.fd for key, _ in ready]


def _exit_reason(worker: _Worker) -> str:
    """Wait until the worker has ended and return why that is no good end: empty after status 0."""
    if worker.pipe in worker.selector.get_map():
        # closed or done with: it would wake the parent again and again
        worker.selector.unregister(worker.pipe)
    while (ending := worker.ending()) is None:
        _wait(worker)
    if ending.si_code == os.CLD_EXITED:
        return f"exit status {ending.si_status}" if ending.si_status else ""
    number = int(ending.si_status)
    if number == signal.SIGKILL:
        return "killed (probably out of memory)"
    return f"crashed with signal {number} ({signal.Signals(number).name})"


def _conclude(case: Case, last: dict[str, Any] | None, ending: str, tail: str) -> Measurement:
    if last is None:
        spoken = [line for line in tail.splitlines() if line.strip()]
        # a Python program's last line names the exception
        why = f": {spoken[-1].strip()}" if spoken and ending.startswith("exit status") else ""
        return failed(case, (ending or "the worker ended without a result") + why, stderr_tail=tail)
    measurement = measurement_of(case, last, isolation="process")
    if measurement.status == "ok":
        # the result was complete before; what came after is worth knowing all the same
        return (
            replace(measurement, facts=measurement.facts | {"worker_exit": one_line(ending)})
            if ending
            else measurement
        )
    return replace(measurement, stderr_tail=measurement.stderr_tail or tail)


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _STDERR_BYTES))
    return "\n".join(stderr.read().decode(errors="replace").splitlines()[-_STDERR_LINES:])
