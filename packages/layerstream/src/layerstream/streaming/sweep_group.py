"""Run several computations so that they share every visit of a unit, under forwards that are not aware of it.

Layer-major order under transformers' own `forward` needs several forwards suspended in the middle. Each task
(any callable that runs forwards of the model) therefore has its own thread, but only one thread runs at a
time, and the turn changes hands where a task enters a unit. `Scheduler` decides whose turn it is;
`SweepGroup` owns the threads, wakes them, captures and restores task state, and acquires and releases units.
It knows units by number and tasks as callables: no tokens, no weights, and not what a task computes.

A task's result or exception ends only that task; the others go on. A task that waits to be admitted starts as
soon as there is capacity, at its own first unit. Room: streaming.

Invariants (each with the test that holds it; 1 to 5 in tests/unit/streaming/test_sweep_group.py, 6 and 7 in
tests/unit/streaming/test_sweep_group_faults.py):
 1. One thread runs at a time: a task, or the caller in its callback (test_only_one_thread_runs_at_a_time).
 2. A visit serves tasks in task order, each once (test_a_visit_serves_tasks_in_order_of_admission).
 3. A unit is acquired once per visit and released after its last task
    (test_a_unit_is_acquired_once_per_visit_however_many_tasks_share_it).
 4. Every task is served again after finitely many visits, regardless of which units the others request
    (test_tasks_with_different_ways_through_the_units_all_finish).
 5. Task state (random state, say) is each task's own at every step (test_each_task_has_its_own_task_state).
 6. However a task ends, the next one gets its turn (test_a_task_that_raises_ends_and_the_others_go_on).
 7. After `run`, from any state, no task's thread is left (test_an_interrupt_at_any_time_ends_every_thread).

Scoring many suffixes against one prefix needs nothing else: let `run` take `[prefix, suffix 1, suffix 2, …]`,
each task one forward of the model. The prefix comes first in the list, so it passes every block before any
suffix enters that block; the attention of suffix k in block i finds the keys and values that the prefix left
in its cache for block i, in the same visit of the same weights. Outside of blocks (masks, positions) a suffix
must use the prefix's length, which is known, and not the prefix's cache, which is still empty there. Tasks
that belong together must be admitted together: the capacity must be None, or at least their summed weights.
test_suffixes_read_the_cache_of_a_prefix_in_the_same_sweep (tests/exactness/test_tasks_share_sweeps.py)
does this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..errors import StreamError
from .scheduler import Scheduler, Task, TaskAbandonedError, TaskResult
from .sweep_run import NoTaskState, RunningTask, SweepRun, TaskState


class SweepGroup:
    """Lets computations share sweeps.

    Attributes:
        sweeps: shared sweeps since the group was made; each read every streamed weight once.
        around: a context that every `run` enters; it keeps other threads off the model.
    """

    def __init__(self, task_state: TaskState | None = None) -> None:
        """Make a group without tasks; `task_state` is what each task needs for itself."""
        self.sweeps = 0
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext
        self._task_state = task_state or NoTaskState()
        self._here = threading.local()
        self._run: SweepRun | None = None

    # -- for callers that have tasks ---------------------------------------------------------------------

    def run(
        self,
        tasks: Iterable[Callable[[], Any] | Task],
        *,
        capacity: float | None = None,
        on_result: Callable[[TaskResult], object] | None = None,
        arrivals: Callable[[], Iterable[Task]] | None = None,
    ) -> list[TaskResult]:
        """Run every task to its end, sharing sweeps; return how each one ended, in the given order.

        A task may come late: it joins the sweep at its own first unit, when the sweep comes round to it. The
        run ends when no task is left.

        Every task starts with the caller's random state and contextvars, and the caller's random state is
        the same afterwards. Other settings of a thread (autocast, say) are not passed on: enter them inside
        the task.

        Args:
            tasks: callables. They are admitted in this order, and visits serve them in this order.
            capacity: the most that running tasks may weigh together; None admits all at once. A task that
                weighs more than this runs alone.
            on_result: called with each result as it comes, in the calling thread, while no task runs. An
                exception that it raises ends the run.
            arrivals: called at every change of turn, by any of the run's threads; returns the tasks that have
                come since. It must be quick, and must not raise. Their results go to `on_result` alone.

        Raises:
            StreamError: the calling thread is inside a task or a forward of this model.
            StreamClosedError: the model is closed, or was closed meanwhile.
            BaseException: what `on_result` or Ctrl-C raised; every task has ended by then.
        """
        if self.is_task_thread():
            raise StreamError(
                "a task cannot start another run of its own group: "
                "return from the task first, or give all tasks to one run"
            )
        given = [_as_task(task) for task in tasks]
        with self.around():
            self.drain()
            state = self._task_state.capture()
            running = {
                number: RunningTask(number, task, first_state=state) for number, task in enumerate(given)
            }
            caller = RunningTask(-1, Task(call=_ignore))
            self._run = SweepRun(
                scheduler=Scheduler((one.task.weight for one in running.values()), capacity=capacity),
                tasks=running,
                caller=caller,
                turn=caller,
                arrivals=arrivals or tuple,
                late_state=state,
            )
            return self._run_to_end(self._run, len(given), on_result or _ignore)

    def run_together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run calls that share sweeps and return their results, from any thread, inside a task or not.

        Inside a task they are parts of it, which visits serve after all tasks, in order; the task goes on
        when they have ended. They start with its random state, which is the same afterwards.

        Args:
            calls: each runs forwards of the model.

        Raises:
            BaseException: the first error of any call; all have ended then.
        """
        results = self._run_parts(calls) if self.is_task_thread() else self.run(calls)
        for result in results:
            if result.error is not None:
                raise result.error
        return [result.value for result in results]

    def _run_parts(self, calls: Sequence[Callable[[], Any]]) -> list[TaskResult]:
        run, whole = self._current()
        if whole.is_in_forward:
            raise StreamError("calls that share a sweep cannot start inside a forward")
        if not calls:
            return []
        state = self._task_state.capture()
        numbers = run.scheduler.suspend(whole.number, len(calls))
        for number, call in zip(numbers, calls, strict=True):
            run.tasks[number] = RunningTask(number, replace(whole.task, call=call), first_state=state)
        self._wait_for_turn(run, whole)
        run.raise_if_abandoned()
        return [run.results.pop(number) for number in numbers]

    def _run_to_end(
        self, run: SweepRun, num_given: int, on_result: Callable[[TaskResult], object]
    ) -> list[TaskResult]:
        results: list[TaskResult] = []
        scheduler = run.scheduler
        try:
            run.take_arrivals()
            while not (scheduler.is_stopped or scheduler.is_done):
                self._wait_for_turn(run, run.caller)
                while not scheduler.is_stopped and (number := scheduler.take_finished()) is not None:
                    result = run.results.pop(number)
                    if number < num_given:
                        results.append(result)
                    on_result(result)
                run.take_arrivals()
        except BaseException:
            run.abandon(TaskAbandonedError("the run was abandoned"))
            raise
        finally:
            self.drain()
        if run.stop_reason is not None:
            raise run.stop_reason
        return sorted(results, key=lambda result: result.number)

    def stop(self, reason: BaseException, *, timeout_s: float = 10.0) -> None:
        """End the current run, if there is one: every task ends, and `run` raises `reason`.

        Returns when the last task has ended; at once when called by a task or by `on_result`; after
        `timeout_s` if a task is stuck in its own code.
        """
        run = self._run
        if run is None:
            return
        run.abandon(reason)
        if not self.is_task_thread() and run.caller_thread != threading.get_ident():
            run.over.wait(timeout_s)

    def drain(self) -> None:
        """Wait until the last task of a finished or interrupted run has ended; then nothing is left of it."""
        run = self._run
        if run is None:
            return
        if run.scheduler.running:
            run.abandon(TaskAbandonedError("the run was abandoned"))
        is_interrupted = run.turn is not run.caller
        while run.scheduler.running:
            if run.turn is run.caller:
                self._wait_for_turn(run, run.caller)
            elif not run.turn.was_started():
                run.scheduler.finish(run.turn.number)
                run.turn = run.caller
            else:
                # the interrupt may have come after the turn was given and before its owner was woken
                run.turn.wake.put(None)
                run.caller.wake.get()
        for thread in run.threads:
            if thread.ident is not None:
                thread.join()
        run.release(tuple(run.releases))
        if is_interrupted:
            self._task_state.restore(run.caller.state)
        self._run = None
        run.over.set()

    # -- for the model's gate and hooks ------------------------------------------------------------------

    def is_task_thread(self) -> bool:
        """Return whether the calling thread runs a task of this group."""
        return getattr(self._here, "running", None) is not None

    def refuse_outsiders(self) -> None:
        """Refuse a thread that runs no task while a run is under way.

        Raises:
            StreamError: the thread would enter a unit in the middle of a visit.
        """
        if self._run is not None:
            raise StreamError(
                "a part of this model was called while tasks share its sweeps: call the model itself, "
                "or make the call a task of the same run"
            )

    def begin_forward(self) -> None:
        """Record that the calling task starts a forward; the visit of its first unit decides its sweep.

        Raises:
            StreamError: the task is inside a forward already.
        """
        running = self._here.running
        if running.is_in_forward:
            raise StreamError("a forward of this model cannot start inside another one")
        running.is_in_forward = running.starts_forward = True

    def end_forward(self) -> None:
        """Record that the forward ended. A forward that entered no unit counts as a sweep of its own."""
        running = self._here.running
        running.is_in_forward = False
        if running.starts_forward:
            running.starts_forward = False
            self.sweeps += 1

    def enter(self, unit: int, acquire: Callable[[], None], release: Callable[[], None]) -> None:
        """Wait until the sweep comes to `unit`, and acquire the unit unless another task has.

        Args:
            unit: its number.
            acquire: puts the unit in place; an exception that it raises is the calling task's.
            release: takes the unit out again; called after the last task.

        Raises:
            StreamClosedError: the model was closed.
            TaskAbandonedError: the run was abandoned.
        """
        run, running = self._current()
        run.raise_if_abandoned()
        run.scheduler.request(running.number, unit)
        self._wait_for_turn(run, running)
        run.raise_if_over(running)
        if unit not in run.releases:
            acquire()
            run.releases[unit] = release
        run.scheduler.enter(running.number, unit)
        if running.starts_forward and run.counted_visit != run.scheduler.visit:
            run.counted_visit = run.scheduler.visit
            self.sweeps += 1
        running.starts_forward = False

    def leave(self, unit: int) -> None:
        """Record that the calling task has left `unit`, if it was inside; the last task releases the unit."""
        run, running = self._current()
        if run.scheduler.leave(running.number, unit):
            run.release(run.scheduler.releasable(run.releases))

    # -- turns -------------------------------------------------------------------------------------------

    def _current(self) -> tuple[SweepRun, RunningTask]:
        run = self._run
        assert run is not None, "a run is over only when its last task has ended"
        return run, self._here.running

    def _wait_for_turn(self, run: SweepRun, me: RunningTask) -> None:
        """Give the turn to the task that is next, and return when it is the turn of `me` again."""
        chosen = run.next_turn()
        if chosen is me:
            return
        me.state = self._task_state.capture()
        self._give_turn(run, chosen)
        while run.turn is not me:
            me.wake.get()
        self._task_state.restore(me.state)

    def _give_turn(self, run: SweepRun, running: RunningTask) -> None:
        run.turn = running
        if running.thread is not None or running is run.caller:
            running.wake.put(None)
            return
        running.thread = threading.Thread(
            target=run.context.copy().run,
            args=(self._run_task, run, running),
            name=f"layerstream-task-{running.number}",
            daemon=True,
        )
        run.threads.append(running.thread)
        running.thread.start()

    def _run_task(self, run: SweepRun, running: RunningTask) -> None:
        if run.turn is not running:
            return
        self._here.running = running
        try:
            self._task_state.restore(running.first_state)
            run.raise_if_abandoned()
            with torch.no_grad():
                result = TaskResult(number=running.number, value=running.task.call())
        except BaseException as error:  # noqa: BLE001 - handed on to the caller of `run`
            result = TaskResult(number=running.number, error=error)
        self._here.running = None
        run.finish(result)
        self._give_turn(run, run.next_turn())


def _as_task(task: Callable[[], Any] | Task) -> Task:
    return task if isinstance(task, Task) else Task(call=task)


def _ignore(*_: object) -> None:
    """Take any arguments and do nothing."""
