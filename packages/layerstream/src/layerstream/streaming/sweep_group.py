"""The sweep group: several computations share every visit of a unit, under forwards that know nothing of it.

Room: streaming. Layer-major order under somebody else's `forward` needs several forwards suspended in the middle. Each *task* (any
callable that runs forwards of the model) has a thread of its own, but only the holder of the **baton** runs; it is handed on where
a unit is entered. Knows units as numbers and tasks as callables; knows no tokens, no weights, and not what a task computes.

The order is fixed. A *visit* of a unit serves every task that stands before it once, in boarding order; then the next unit in
cyclic order that anybody wants is visited. So tasks that ask for the same units task together, and one that takes another way (an
early exit, fewer sweeps, a later start) waits until the sweep comes round to it. What a task ends with, result or exception, is
its own; the others go on. Whoever waits to board does so when there is room, and tasks from its first unit on.

Invariants (each with the test that holds it, in tests/unit/streaming/test_sweep.py):
 1. One thread runs at a time: a task, or the driver in its callback (test_only_the_holder_of_the_baton_runs).
 2. A visit serves tasks in boarding order, each once (test_a_visit_serves_riders_in_boarding_order).
 3. A unit is brought once a visit and let go after its last task (test_a_unit_is_brought_once_a_visit_however_many_ride).
 4. Every task is served again after finitely many visits, whatever the others want (test_riders_on_different_ways_all_arrive).
 5. What is kept apart (random state) is each task's own at every step (test_what_is_kept_apart_is_each_riders_own).
 6. Whatever ends a task hands the baton on (test_a_ride_that_raises_leaves_and_the_others_go_on).
 7. After `run`, from any state, no task's thread is left (test_an_interrupt_at_any_time_ends_every_thread).

Scoring many suffixes against one prefix needs no more than this: let `run` take `[prefix, suffix 1, suffix 2, …]`, each task one
forward of the model. They board together, so the prefix, first in the list, passes every block before any suffix enters it, and
suffix k's attention in block i finds the keys and values that the prefix left in its cache in block i, in the same visit of the
same weights. Outside of blocks (masks, positions) a suffix goes by the prefix' length, which is known, and not by its cache, which
is still empty there. Rides that belong together must have the capacity to board together: None, or at least their summed weights.
test_suffixes_read_the_cache_of_a_prefix_that_rides_before_them (tests/exactness/test_riding_together.py) does it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from time import monotonic, sleep
from typing import Any, Protocol

import torch

from ..errors import StreamError
from .scheduler import OpenUnit, Run, RunningTask, Task, TaskAbandonedError, TaskResult


class TaskState(Protocol):
    """What is global to the process or the model, but must be each task's own."""

    def capture(self) -> Any:
        """Return the state of now."""

    def restore(self, state: Any) -> None:
        """Make `state` the present one."""


class SweepGroup:
    """Let computations share sweeps.

    Attributes:
        sweeps: sweeps that were shared since the group was made; each read the streamed weights once.
        around: entered for the whole of every `run`: it keeps others off the model.
    """

    def __init__(self, keep: TaskState | None = None) -> None:
        """Make a group that nobody tasks in; `keep` is what each task has of its own."""
        self.sweeps = 0
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext
        self._keep = keep or _NoTaskState()
        self._here = threading.local()
        self._run: Run | None = None

    # -- for those who want something computed ---------------------------------------------------------------------------

    def run(
        self,
        tasks: Iterable[Callable[[], Any] | Task],
        *,
        capacity: float | None = None,
        on_result: Callable[[TaskResult], object] | None = None,
    ) -> list[TaskResult]:
        """Let every task run to its end, sharing sweeps; return how each one ended, in the order given.

        Every task starts with the caller's random state, and the caller finds its own as it left it. Contextvars are the caller's;
        other settings of a thread (autocast, say) are not: enter them inside the task.

        Args:
            tasks: callables. They board in this order, and keep it in every unit as long as they go the same way.
            capacity: tasks on board weigh no more than this together; None lets all board at once. A task that weighs more than
                all of it tasks alone.
            on_result: told of each end as it comes, in the calling thread, while no task runs. What it raises ends the run.

        Raises:
            StreamError: the calling thread is inside a task or a forward of this model.
            StreamClosedError: the model is closed, or was meanwhile.
            BaseException: what `on_result` or Ctrl-C raised; every task has ended by then.
        """
        if self.is_task_thread():
            raise StreamError(
                "a task cannot start another run of its own group: return first, or hand both tasks to one run"
            )
        waiting = deque(RunningTask(number, _as_task(task)) for number, task in enumerate(tasks))
        with self.around():
            self.drain()
            driver = RunningTask(-1, Task(call=_nobody))
            room = float("inf") if capacity is None else capacity
            self._run = Run(
                driver=driver, holder=driver, waiting=waiting, room=room, first_state=self._keep.capture()
            )
            return self._drive(self._run, on_result or _nobody)

    def _drive(self, run: Run, on_result: Callable[[TaskResult], object]) -> list[TaskResult]:
        task_results: list[TaskResult] = []
        try:
            while run.stop is None and (run.waiting or run.running_tasks or run.arrived):
                self._hand_on(run, run.driver)
                while run.arrived and run.stop is None:
                    task_results.append(run.arrived.popleft())
                    on_result(task_results[-1])
        except BaseException:
            run.give_up(TaskAbandonedError("the run was given up"))
            raise
        finally:
            self.drain()
        if run.stop is not None:
            raise run.stop
        return sorted(task_results, key=lambda task_result: task_result.number)

    def stop(self, reason: BaseException, *, timeout_s: float = 10.0) -> None:
        """End the present run, if there is one: every task ends, and `run` raises `reason`.

        Returns when the last task has ended; at once when called by a task or by `on_result`; after `timeout_s` where a task is
        stuck in code of its own.
        """
        run = self._run
        if run is None:
            return
        run.give_up(reason)
        if not self.is_task_thread() and run.driver_thread != threading.get_ident():
            run.over.wait(timeout_s)

    def drain(self) -> None:
        """Wait until the last task of a run that is over, or was interrupted anywhere, has ended; then nothing is left of it."""
        run = self._run
        if run is None:
            return
        if run.running_tasks:
            run.give_up(TaskAbandonedError("the run was given up"))
        is_interrupted = run.holder is not run.driver
        while run.running_tasks:
            if run.holder is run.driver:
                self._hand_on(run, run.driver)
            elif not _was_started(run.holder):
                run.running_tasks.remove(run.holder)
                run.holder = run.driver
            else:
                # the interrupt may have come between choosing and waking
                run.holder.wake.put(None)
                run.driver.wake.get()
        for thread in run.threads:
            if thread.ident is not None:
                thread.join()
        run.line.clear()
        run.release_unused()
        if is_interrupted:
            self._keep.restore(run.driver.state)
        self._run = None
        run.over.set()

    # -- for the model's gate and hooks ----------------------------------------------------------------------------------

    def is_task_thread(self) -> bool:
        """Return whether the calling thread tasks."""
        return getattr(self._here, "running", None) is not None

    def refuse_outsiders(self) -> None:
        """Refuse a thread that does not task while others do.

        Raises:
            StreamError: it would enter a unit between tasks.
        """
        if self._run is not None:
            raise StreamError(
                "a part of this model was called while others share its sweep: call the model itself, or join them"
            )

    def begin_forward(self) -> None:
        """Tell that the calling task starts a forward: the visit of its first unit decides which sweep that is.

        Raises:
            StreamError: it is inside one.
        """
        running = self._here.running
        if running.is_in_forward:
            raise StreamError("a forward of this model cannot start inside another one")
        running.is_in_forward = running.starts_forward = True

    def end_forward(self) -> None:
        """Tell that it ended. One that met no unit was a sweep of its own."""
        running = self._here.running
        running.is_in_forward = False
        if running.starts_forward:
            running.starts_forward = False
            self.sweeps += 1

    def enter(self, unit: int, acquire: Callable[[], None], release: Callable[[], None]) -> None:
        """Wait for the sweep to come to `unit`, and bring it if nobody has.

        Args:
            unit: its number.
            bring: puts it in place; what it raises is the calling task's.
            release: takes it out again; called after the last task.

        Raises:
            StreamClosedError: the model was closed.
            TaskAbandonedError: the run was given up.
        """
        run, running = self._present()
        run.check_going()
        run.queue_up(running, unit)
        self._hand_on(run, running)
        running.wants = None
        run.check_going()
        running.served = run.visit
        if unit not in run.open:
            acquire()
            run.open[unit] = OpenUnit(release)
        run.open[unit].inside.add(running)
        if running.starts_forward and run.sweep_visit != run.visit:
            run.sweep_visit = run.visit
            self.sweeps += 1
        running.starts_forward = False

    def leave(self, unit: int) -> None:
        """Say that the calling task is through with `unit`; after the last one it is let go."""
        run, running = self._present()
        entry = run.open.get(unit)
        if entry is None or running not in entry.inside:
            return
        entry.inside.discard(running)
        run.release_unused()

    # -- the baton -------------------------------------------------------------------------------------------------------

    def _present(self) -> tuple[Run, RunningTask]:
        run = self._run
        assert run is not None, "a task's run is over only when the task has left"
        return run, self._here.running

    def _hand_on(self, run: Run, me: RunningTask) -> None:
        """Give the baton to whose turn it is, and return when it is `me`'s again."""
        chosen = run.next_to_run()
        if chosen is me:
            return
        me.state = self._keep.capture()
        self._give(run, chosen)
        while run.holder is not me:
            me.wake.get()
        self._keep.restore(me.state)

    def _give(self, run: Run, running: RunningTask) -> None:
        run.holder = running
        if running.thread is not None or running is run.driver:
            running.wake.put(None)
            return
        arguments = (self._run_task, run, running)
        name = f"layerstream-task-{running.number}"
        running.thread = threading.Thread(
            target=run.context.copy().run, args=arguments, name=name, daemon=True
        )
        run.threads.append(running.thread)
        running.thread.start()

    def _run_task(self, run: Run, running: RunningTask) -> None:
        if run.holder is not running:
            return
        self._here.running = running
        try:
            self._keep.restore(run.first_state)
            run.check_going()
            with torch.no_grad():
                task_result = TaskResult(number=running.number, value=running.task.call())
        except BaseException as error:  # noqa: BLE001 - handed on to whoever waits for this task
            task_result = TaskResult(number=running.number, error=error)
        self._here.running = None
        run.finish_task(running, task_result)
        self._give(run, run.next_to_run())


class _NoTaskState:
    """Keeps nothing apart."""

    def capture(self) -> None:
        """Return nothing."""

    def restore(self, state: None) -> None:
        """Do nothing."""


def _was_started(running: RunningTask) -> bool:
    """Return whether `task` has a thread that runs; one whose start was interrupted a moment ago shows within a second."""
    deadline_s = monotonic() + 1.0
    while running.thread is not None and running.thread.ident is None and monotonic() < deadline_s:
        sleep(0.01)
    return running.thread is not None and running.thread.ident is not None


def _as_task(task: Callable[[], Any] | Task) -> Task:
    return task if isinstance(task, Task) else Task(call=task)


def _nobody(*_: object) -> None:
    """Hear of an result and do nothing."""
