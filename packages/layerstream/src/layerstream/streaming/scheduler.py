"""Who holds the baton next: the order in which tasks pass through units.

Room: streaming. Pure bookkeeping on numbers: knows units, tasks and their line, starts no thread and wakes none (that is
`sweep.py`). One thread at a time uses it, the holder of the baton; only `give_up` may come from anywhere.
"""

from __future__ import annotations

import bisect
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ..errors import StreamClosedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A computation that wants to share sweeps.

    Attributes:
        call: runs forwards of the model and returns what it likes. It runs in a thread of its own, without gradients.
        weight: what it takes of the group's capacity while it tasks, in any unit.
    """

    call: Callable[[], Any]
    weight: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """How a task ended.

    Attributes:
        number: its place among the tasks given, from 0.
        value: what it returned.
        error: what it raised; None when it returned.
    """

    number: int
    value: Any = None
    error: BaseException | None = None


class TaskAbandonedError(BaseException):
    """Ends a task whose run was given up.

    Not an Exception: a task's own `except Exception` must not keep it going.
    """


@dataclass(slots=True, eq=False)
class RunningTask:
    """A task on its way, or the driver: whoever may hold the baton."""

    number: int
    task: Task
    thread: threading.Thread | None = None
    wants: int | None = None
    served: int = -1
    is_in_forward: bool = False
    starts_forward: bool = True
    state: Any = None
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)


@dataclass(slots=True)
class OpenUnit:
    """A unit in place: who is inside, and what lets it go."""

    release: Callable[[], None]
    inside: set[RunningTask] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Run:
    """One call of `run`: who tasks and where the sweep stands. Only the holder of the baton changes it, save for `stop`."""

    driver: RunningTask
    holder: RunningTask
    waiting: deque[RunningTask]
    room: float
    first_state: Any
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    driver_thread: int = field(default_factory=threading.get_ident)
    running_tasks: list[RunningTask] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    arrived: deque[TaskResult] = field(default_factory=deque)
    unit: int = -1
    visit: int = 0
    sweep_visit: int = -1
    line: list[RunningTask] = field(default_factory=list)
    open: dict[int, OpenUnit] = field(default_factory=dict)
    stop: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def give_up(self, reason: BaseException) -> None:
        """Let every task end where it enters a unit next; the first reason counts."""
        if self.stop is None:
            self.stop = reason

    def check_going(self) -> None:
        """Raise in a task whose run was given up; an exception of its own, since a traceback belongs to one thread."""
        if isinstance(self.stop, StreamClosedError):
            raise StreamClosedError(*self.stop.args)
        if self.stop is not None:
            raise TaskAbandonedError("the run was given up")

    def next_to_run(self) -> RunningTask:
        """Return who runs next: the driver for its callback, who boards, who is left in this visit, who is first in the next."""
        if self.stop is not None:
            self.waiting.clear()
            return self.running_tasks[0] if self.running_tasks else self.driver
        if self.arrived:
            return self.driver
        if self.waiting and (not self.running_tasks or self.waiting[0].task.weight <= self.room):
            boarding = self.waiting.popleft()
            self.room -= boarding.task.weight
            self.running_tasks.append(boarding)
            return boarding
        if not self.running_tasks:
            return self.driver
        if not self.line:
            self._move_on()
        return self.line.pop(0)

    def _move_on(self) -> None:
        """Go to the next unit that anybody wants, in cyclic order."""
        self.release_unused()
        wanted = {running.wants for running in self.running_tasks if running.wants is not None}
        later = [unit for unit in wanted if unit > self.unit]
        self.unit = min(later or wanted)
        self.visit += 1
        self.line = [running for running in self.running_tasks if running.wants == self.unit]

    def queue_up(self, running: RunningTask, unit: int) -> None:
        """Let `task` stand before `unit`: in line if that one is being visited and has not served it yet."""
        running.wants = unit
        if unit == self.unit and running.served != self.visit:
            bisect.insort(self.line, running, key=lambda one: one.number)

    def finish_task(self, running: RunningTask, task_result: TaskResult) -> None:
        """Take a task off whose task has ended."""
        self.running_tasks.remove(running)
        self.room += running.task.weight
        for entry in self.open.values():
            entry.inside.discard(running)
        self.release_unused()
        self.arrived.append(task_result)

    def release_unused(self) -> None:
        """Let every unit go that nobody is in, or stands in line for."""
        awaited = self.unit if self.line else None
        for unit in [unit for unit, entry in self.open.items() if not entry.inside and unit != awaited]:
            entry = self.open.pop(unit)
            try:
                entry.release()
            except Exception as error:  # noqa: BLE001 - a listener's: it belongs to no task, so `run` raises it
                self.give_up(error)
