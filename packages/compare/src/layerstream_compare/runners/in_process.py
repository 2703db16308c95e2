"""Run one case in this process, for hosts that forbid child processes. The events are the same.

This is the weaker runner: memory figures may include what earlier cases left behind, and a crash ends
everything. Each measurement is marked by its `isolation`. Only here does the parent load torch, and only once
a case runs.
"""

from __future__ import annotations

import contextvars
import importlib
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

from ..case import Case
from ..events import Event
from ..protocol import LIVE_KINDS, failed, measurement_of

ISOLATION = "in-process"

RunCase = Callable[..., None]
"""Called with a case and `emit(kind, **data)`; emits the same events as a worker."""

_WAITING = "waiting"

_Message = tuple[str, dict[str, Any]] | None
"""Kind and data of an event; None when the case has ended."""


class _ClosedError(BaseException):
    """The iterator was closed. Not an `Exception`, so that no case handles it as a failure of its own."""


def run_in_process(
    case: Case, *, run_case: RunCase | None = None, heartbeat_s: float | None = None
) -> Generator[Event, None, None]:
    """Run `case` in this process and yield its events, ending with one `finished` event.

    The case runs in its own thread, so that tokens can be shown as they arrive. Closing the iterator stops
    the case at its next event and waits for that. The time limit is ignored, since a thread cannot be killed.

    Args:
        case: the case to run.
        run_case: the function that runs it; the worker's by default.
        heartbeat_s: yield a `waiting` event after this many seconds without an event; None yields none.
    """
    yield Event(case=case, kind="started", data={})
    messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
    closed = threading.Event()
    # hosts keep the user's request in the context, and with it the permission to use a GPU
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=context.run,
        args=(_work, case, run_case, messages, closed),
        name=f"case {case.label}",
        daemon=True,
    )
    thread.start()
    last: dict[str, Any] | None = None
    try:
        while (message := _next(messages, heartbeat_s)) is not None:
            kind, data = message
            if kind in LIVE_KINDS or kind == _WAITING:
                yield Event(case=case, kind=kind, data=data)
            else:
                last = {"kind": kind, **data}
    finally:
        closed.set()
        thread.join()
    measurement = (
        failed(case, "the case ended without a result", isolation=ISOLATION)
        if last is None
        else measurement_of(case, last, isolation=ISOLATION)
    )
    yield Event(case=case, kind="finished", data={}, measurement=measurement)


def _next(messages: queue.SimpleQueue[_Message], heartbeat_s: float | None) -> _Message:
    try:
        return messages.get(timeout=heartbeat_s)
    except queue.Empty:
        return _WAITING, {}


def _work(
    case: Case, run_case: RunCase | None, messages: queue.SimpleQueue[_Message], closed: threading.Event
) -> None:
    def emit(kind: str, **data: Any) -> None:
        if closed.is_set():
            raise _ClosedError
        messages.put((kind, data))

    try:
        # imported late: the worker's module loads torch
        (run_case or importlib.import_module("..worker.run", __package__).run_case)(case, emit)
    except _ClosedError:
        pass
    except (Exception, SystemExit) as error:  # noqa: BLE001  a failed case is a result
        messages.put(("failed", {"reason": f"{type(error).__name__}: {error}"}))
    finally:
        messages.put(None)
