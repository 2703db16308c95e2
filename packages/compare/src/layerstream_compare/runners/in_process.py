"""The weaker runner: one case in this very process, for hosts that allow no children. The events are the same.

Its memory figures may show what earlier cases left behind, and a crash takes everything with it; each measurement says so by its
`isolation`. Here alone does the parent's side load torch, and only once a case runs.
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
"""Called with a case and `emit(kind, **data)`; tells of everything as a worker does."""

_WAITING = "waiting"

_Told = tuple[str, dict[str, Any]] | None


class _ClosedError(BaseException):
    """Nobody listens any more. Not an `Exception`: no case may take it for a failure of its own."""


def run_in_process(
    case: Case, *, run_case: RunCase | None = None, heartbeat_s: float | None = None
) -> Generator[Event, None, None]:
    """Run `case` in this process and yield what happens, ending with one `finished` event.

    The case runs in a thread of its own, so that its tokens can be shown as they come. Closing the iterator ends it at its next
    event, and waits for that. The time limit is not kept: a thread cannot be killed.

    Args:
        case: what to run.
        run_case: what runs it; the worker's own function by default.
        heartbeat_s: yield a `waiting` event whenever nothing was told for so long; None waits.
    """
    yield Event(case=case, kind="started", data={})
    told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
    closed = threading.Event()
    context = (
        contextvars.copy_context()
    )  # hosts keep the user's request, and the right to a GPU with it, in there
    thread = threading.Thread(
        target=context.run, args=(_work, case, run_case, told, closed), name=f"case {case.label}", daemon=True
    )
    thread.start()
    last: dict[str, Any] | None = None
    try:
        while (message := _next(told, heartbeat_s)) is not None:
            kind, data = message
            if kind in LIVE_KINDS or kind == _WAITING:
                yield Event(case=case, kind=kind, data=data)
            else:
                last = {"kind": kind, **data}
    finally:
        closed.set()
        thread.join()
    measurement = (
        failed(case, "it ended without a result", isolation=ISOLATION)
        if last is None
        else measurement_of(case, last, isolation=ISOLATION)
    )
    yield Event(case=case, kind="finished", data={}, measurement=measurement)


def _next(told: queue.SimpleQueue[_Told], heartbeat_s: float | None) -> _Told:
    try:
        return told.get(timeout=heartbeat_s)
    except queue.Empty:
        return _WAITING, {}


def _work(
    case: Case, run_case: RunCase | None, told: queue.SimpleQueue[_Told], closed: threading.Event
) -> None:
    def emit(kind: str, **data: Any) -> None:
        if closed.is_set():
            raise _ClosedError
        told.put((kind, data))

    try:
        # the worker's module loads torch, which is not to happen before it must
        (run_case or importlib.import_module("..worker.run", __package__).run_case)(case, emit)
    except _ClosedError:
        pass
    except (Exception, SystemExit) as error:  # noqa: BLE001  a failed case is a result: it is handed on
        told.put(("failed", {"reason": f"{type(error).__name__}: {error}"}))
    finally:
        told.put(None)
