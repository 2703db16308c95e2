"""Decide which task runs next, which tasks are admitted, and which units may be released.

`Scheduler` works on numbers alone: tasks by number and weight, units by index. It stores no thread, queue,
event or callable, so tests check its decisions as tables; `SweepGroup` owns the threads and carries the
decisions out. `Task` and `TaskResult` are what callers hand in and get back. Room: streaming.

The rules:
 - Tasks are admitted in the given order, as soon as their weight fits into the capacity that is left. When
   no task is running, the next one is admitted regardless of its weight: a task that is heavier than the
   whole capacity runs alone.
 - A *visit* of a unit serves every task that requests this unit, once each, in task order.
 - The next visit goes to the next requested unit in cyclic order. Tasks that request the same units share
   their visits; a task that takes a different path (an early exit, fewer sweeps, a later start) waits until
   the sweep comes round to its unit.
 - Tasks may be added at any time; they come after those that are there.
 - A task may be suspended until tasks of its own have finished: those are admitted at once, regardless of
   their weight, and come after all others in task order.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A computation that shares sweeps with others.

    Attributes:
        call: runs forwards of the model and returns any value. It runs in its own thread, without gradients.
        weight: how much of the group's capacity it takes while it runs, in any unit.
        is_cancelled: asked whenever it enters a unit; True ends it there.
    """

    call: Callable[[], Any]
    weight: float = 0.0
    is_cancelled: Callable[[], bool] = _never


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """How a task ended.

    Attributes:
        number: its position among the given tasks, from 0.
        value: what it returned.
        error: what it raised; None when it returned.
    """

    number: int
    value: Any = None
    error: BaseException | None = None


class TaskAbandonedError(BaseException):
    """Ends a task whose run was abandoned.

    Not an Exception: a task's own `except Exception` must not keep it going.
    """


class Scheduler:
    """The schedule of one run, used by one thread at a time; only `stop` may come from any thread.

    Attributes:
        running: the admitted tasks that have not finished, in task order.
        visit: the number of the current visit.
        is_stopped: running tasks have to end, and no other task is admitted.
    """

    def __init__(self, weights: Iterable[float], *, capacity: float | None = None) -> None:
        """Schedule one task per weight; running tasks weigh at most `capacity` together (None: no limit)."""
        self.running: list[int] = []
        self.visit = 0
        self.is_stopped = False
        self._weights: dict[int, float] = {}
        self._next_number = 0
        self._waiting: deque[int] = deque()
        self._parts: deque[int] = deque()
        self._part_of: dict[int, int] = {}
        self._unfinished_parts: dict[int, int] = {}
        self._resumable: deque[int] = deque()
        self._finished: deque[int] = deque()
        self._capacity_left = float("inf") if capacity is None else capacity
        self._unit = -1
        self._queue: list[int] = []
        self._requested: dict[int, int] = {}
        self._last_visit: dict[int, int] = {}
        self._inside: dict[int, set[int]] = {}
        for weight in weights:
            self.add(weight)

    def add(self, weight: float) -> int:
        """Let one more task wait for its admission, and return its number."""
        (number,) = self._new_numbers([weight])
        self._waiting.append(number)
        return number

    @property
    def is_done(self) -> bool:
        """Whether every task has finished and was returned by `take_finished`."""
        return not (self._waiting or self.running or self._finished)

    def next_task(self) -> int | None:
        """Return the task that runs next; None when it is the caller's turn.

        The first of these: None, while a finished task has not been taken; a task whose parts have finished;
        a part or a task that can be admitted now; the next task in the current visit; the first task of the
        next visit; None, when no task is left.
        After `stop`: the first running task, or None.
        """
        if self.is_stopped:
            self._waiting.clear()
            self._parts.clear()
            return self.running[0] if self.running else None
        if self._finished:
            return None
        if self._resumable:
            return self._resumable.popleft()
        if self._parts:
            return self._run(self._parts.popleft())
        if self._waiting and (not self.running or self._weights[self._waiting[0]] <= self._capacity_left):
            return self._admit()
        if not self.running:
            return None
        if not self._queue:
            self._start_visit()
        task = self._queue.pop(0)
        del self._requested[task]
        self._last_visit[task] = self.visit
        return task

    def request(self, task: int, unit: int) -> None:
        """Let `task` wait for `unit`: in the current visit, if it visits this unit and has not served it."""
        self._requested[task] = unit
        if unit == self._unit and self._last_visit.get(task) != self.visit:
            bisect.insort(self._queue, task)

    def suspend(self, task: int, num_parts: int) -> range:
        """Let `task` wait for as many new tasks, its parts, and return their numbers."""
        parts = self._new_numbers([0.0] * num_parts)
        self._parts.extend(parts)
        self._part_of |= dict.fromkeys(parts, task)
        self._unfinished_parts[task] = num_parts
        return parts

    def enter(self, task: int, unit: int) -> None:
        """Record that `task` is inside `unit`."""
        self._inside.setdefault(unit, set()).add(task)

    def leave(self, task: int, unit: int) -> bool:
        """Record that `task` has left `unit`; return whether it was inside."""
        inside = self._inside.get(unit)
        if inside is None or task not in inside:
            return False
        inside.discard(task)
        return True

    def finish(self, task: int) -> None:
        """Record that `task` has ended, wherever it was, and free its capacity. Safe to call twice."""
        if task not in self.running:
            return
        if task in self._queue:
            self._queue.remove(task)
        self._requested.pop(task, None)
        self._last_visit.pop(task, None)
        for inside in self._inside.values():
            inside.discard(task)
        self.running.remove(task)
        self._capacity_left += self._weights.pop(task)
        whole = self._part_of.pop(task, None)
        if whole is None:
            self._finished.append(task)
        else:
            self._finish_part(whole)

    def _finish_part(self, whole: int) -> None:
        self._unfinished_parts[whole] -= 1
        if not self._unfinished_parts[whole] and whole in self.running:
            self._resumable.append(whole)

    def take_finished(self) -> int | None:
        """Return the next finished task, in the order in which they finished; None when all were taken."""
        return self._finished.popleft() if self._finished else None

    def releasable(self, units: Iterable[int]) -> list[int]:
        """Return those of `units` that no task is inside of, nor about to enter in the current visit."""
        visited = self._unit if self._queue else None
        return [unit for unit in units if unit != visited and not self._inside.get(unit)]

    def stop(self) -> None:
        """Give each running task a last turn, one after another, and admit no other task."""
        self.is_stopped = True

    def _new_numbers(self, weights: Sequence[float]) -> range:
        numbers = range(self._next_number, self._next_number + len(weights))
        self._next_number = numbers.stop
        self._weights |= zip(numbers, weights, strict=True)
        return numbers

    def _admit(self) -> int:
        task = self._waiting.popleft()
        self._capacity_left -= self._weights[task]
        return self._run(task)

    def _run(self, task: int) -> int:
        bisect.insort(self.running, task)
        return task

    def _start_visit(self) -> None:
        """Visit the next requested unit in cyclic order."""
        requested = set(self._requested.values())
        later = [unit for unit in requested if unit > self._unit]
        self._unit = min(later or requested)
        self.visit += 1
        self._queue = [task for task in self.running if self._requested.get(task) == self._unit]
