"""The gate around every forward of a streamed model: one at a time, without gradients, counted.

It knows forwards and the group that shares sweeps. It does not know units or disks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any

from torch import nn

from ..errors import StreamClosedError, StreamError
from ..streaming.eager import warn_when_compiled
from ..streaming.no_backward import without_backward
from ..streaming.sweep_group import SweepGroup


class ForwardGate:
    """Lets one forward into the model at a time.

    Forwards of tasks that share a sweep pass together: their group's run holds the gate for all of them. The
    instance's `forward` is wrapped, not hooked: a hook after the forward does not run when Ctrl-C ends it.

    Attributes:
        elapsed_s: seconds inside forwards, and inside runs of the group from the first forward to the last.
        is_closed: no forward may start any more.
        group: lets tasks share sweeps.
    """

    def __init__(
        self,
        model: nn.Module,
        group: SweepGroup,
        *,
        check: Callable[[tuple[Any, ...], dict[str, Any]], object],
        on_start: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """Wrap the forward of `model`.

        Args:
            model: the model.
            group: lets tasks share its sweeps.
            check: called with a forward's arguments before it may pass; may refuse it by raising.
            on_start: called when a passage begins.
            on_end: called when it ends.
        """
        self.elapsed_s = 0.0
        self.is_closed = False
        self.group = group
        self._model = model
        self._on_start, self._on_end = on_start, on_end
        self._num_alone = 0
        self._one_at_a_time = threading.Lock()
        self._thread_inside: int | None = None
        original = model.forward

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            with self._together() if group.is_task_thread() else self._alone():
                return original(*args, **kwargs)

        model.__dict__["forward"] = warn_when_compiled(without_backward(forward))

    @property
    def sweeps(self) -> int:
        """Sweeps begun so far: forwards, with those that share a sweep counted once."""
        return self._num_alone + self.group.sweeps

    def is_free(self) -> bool:
        """Return whether no thread is inside."""
        return not self._one_at_a_time.locked()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every thread out except the group's tasks."""
        with self.shut(), self._passage():
            yield

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Keep every thread out, once a forward that is under way has ended."""
        if self._thread_inside == threading.get_ident():
            raise StreamError(
                "a forward of this model cannot start inside another one, "
                "nor in a callback of tasks that share its sweeps"
            )
        with self._one_at_a_time:
            try:
                self._thread_inside = threading.get_ident()
                self._check_open()
                self.group.drain()
                yield
            finally:
                self._thread_inside = None

    @contextmanager
    def _passage(self) -> Iterator[None]:
        self._on_start()
        start_s = perf_counter()
        try:
            yield
        finally:
            self.elapsed_s += perf_counter() - start_s
            self._on_end()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.hold():
            self._num_alone += 1
            yield

    @contextmanager
    def _together(self) -> Iterator[None]:
        self._check_open()
        self.group.begin_forward()
        try:
            yield
        finally:
            self.group.end_forward()

    def _check_open(self, *_: Any) -> None:
        if self.is_closed:
            raise StreamClosedError("this streamed model is closed and its weights are gone: load it again")

    def close(self) -> None:
        """Refuse every further forward."""
        self.is_closed = True
        self._model.__dict__.pop("forward", None)
        self._model.register_forward_pre_hook(self._check_open, prepend=True)
