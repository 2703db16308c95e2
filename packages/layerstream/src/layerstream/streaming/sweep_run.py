"""The state of one `SweepGroup.run`: its schedule, its tasks' threads and results, and the units in place.

Plain state with the few steps that change it; `SweepGroup` decides when they happen. Room: streaming.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any, Protocol

from ..errors import StreamClosedError
from .scheduler import Scheduler, Task, TaskAbandonedError, TaskResult


class TaskState(Protocol):
    """State that is global to the process or the model, although each task needs its own."""

    def capture(self) -> Any:
        """Return the current state."""

    def restore(self, state: Any) -> None:
        """Make `state` the current one."""


class NoTaskState:
    """A `TaskState` for models where nothing is global."""

    def capture(self) -> None:
        """Return nothing."""

    def restore(self, state: None) -> None:
        """Do nothing."""


@dataclass(slots=True, eq=False)
class RunningTask:
    """A task with its thread; also the caller of `run`, which takes turns with the tasks.

    Attributes:
        number: its position among the given tasks; -1 for the caller.
        task: what it runs.
        thread: its thread; None before its first turn, and for the caller.
        is_in_forward: it is inside a forward of the model.
        first_state: the task state that it starts with.
        starts_forward: its forward has not entered a unit yet.
        state: its task state while it waits for a turn.
        wake: gets an item when its turn comes.
    """

    number: int
    task: Task
    thread: threading.Thread | None = None
    is_in_forward: bool = False
    starts_forward: bool = True
    first_state: Any = None
    state: Any = None
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)

    def was_started(self) -> bool:
        """Return whether its thread runs or ran; an interrupted start shows within a second."""
        deadline_s = monotonic() + 1.0
        while self.thread is not None and self.thread.ident is None and monotonic() < deadline_s:
            sleep(0.01)
        return self.thread is not None and self.thread.ident is not None


@dataclass(slots=True, kw_only=True)
class SweepRun:
    """One run. Only the thread whose turn it is changes it; `abandon` may come from any thread.

    Attributes:
        scheduler: decides whose turn is next.
        tasks: the tasks that have not finished, by number.
        caller: the thread inside `run`.
        turn: the one that may run now.
        context: the caller's contextvars.
        caller_thread: the caller's thread identifier.
        threads: all threads so far.
        results: of finished tasks, by number, until the caller takes them.
        releases: for each unit in place, what takes it out again.
        counted_visit: the visit that was last counted as the start of a sweep.
        stop_reason: why the run was abandoned; None while it goes on.
        over: set when nothing of the run is left.
        arrivals: returns tasks that have come since it was last called; must be quick.
        late_state: the task state that they start with.
    """

    scheduler: Scheduler
    tasks: dict[int, RunningTask]
    caller: RunningTask
    turn: RunningTask
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    caller_thread: int = field(default_factory=threading.get_ident)
    threads: list[threading.Thread] = field(default_factory=list)
    results: dict[int, TaskResult] = field(default_factory=dict)
    releases: dict[int, Callable[[], None]] = field(default_factory=dict)
    counted_visit: int = -1
    stop_reason: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)
    arrivals: Callable[[], Iterable[Task]] = tuple
    late_state: Any = None

    def take_arrivals(self) -> None:
        """Let tasks that have come meanwhile wait for their admission."""
        for task in self.arrivals():
            number = self.scheduler.add(task.weight)
            self.tasks[number] = RunningTask(number, task, first_state=self.late_state)

    def abandon(self, reason: BaseException) -> None:
        """Let every task end where it next enters a unit; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
        self.scheduler.stop()

    def raise_if_over(self, running: RunningTask) -> None:
        """End the calling task if it was cancelled, or if the run was abandoned."""
        self.raise_if_abandoned()
        if running.task.is_cancelled():
            raise TaskAbandonedError("the task was cancelled")

    def raise_if_abandoned(self) -> None:
        """End the calling task, with its own exception because a traceback belongs to one thread."""
        if isinstance(self.stop_reason, StreamClosedError):
            raise StreamClosedError(*self.stop_reason.args)
        if self.stop_reason is not None:
            raise TaskAbandonedError("the run was abandoned")

    def next_turn(self) -> RunningTask:
        """Return the task whose turn is next, or the caller."""
        if not self.scheduler.is_stopped:
            self.take_arrivals()
        number = self.scheduler.next_task()
        return self.caller if number is None else self.tasks[number]

    def finish(self, result: TaskResult) -> None:
        """Record how a task ended, and release the units that only this task needed."""
        self.results[result.number] = result
        self.scheduler.finish(result.number)
        del self.tasks[result.number]
        self.release(self.scheduler.releasable(self.releases))
        # a run that goes on for days must not keep the threads of all tasks that it ever had
        self.threads = [thread for thread in self.threads if thread.is_alive() or thread.ident is None]

    def release(self, units: Iterable[int]) -> None:
        """Release `units`. An error there, of a listener, belongs to no task: it ends the run."""
        for unit in units:
            release = self.releases.pop(unit)
            try:
                release()
            except Exception as error:  # noqa: BLE001 - `run` raises it
                self.abandon(error)
