"""Run one piece of work per device at the same time, and raise the first error.

It knows threads. It does not know models or weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_CHECK_EVERY_S = 0.5
"""How often the waiting thread checks for Ctrl-C, on systems where a wait cannot be interrupted."""


@dataclass(slots=True)
class _Outcome(Generic[T]):
    """The results so far.

    Attributes:
        results: by index, of the work that has returned.
        first_error: of the work that failed first.
    """

    results: dict[int, T] = field(default_factory=dict)
    first_error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: BaseException) -> bool:
        """Record an error; return whether it is the first."""
        with self.lock:
            if self.first_error is not None:
                return False
            self.first_error = error
            return True


def run_in_parallel(
    works: Sequence[Callable[[], T]], *, on_failure: Callable[[int, BaseException], None]
) -> list[T]:
    """Run all `works` at the same time and return their results.

    The first runs in the calling thread, each other one in a thread of its own. Returns or raises only when
    all of them have ended.

    Args:
        works: what to run.
        on_failure: called with the index and the error of the work that failed first; it must make the others
            end.

    Raises:
        BaseException: the first error (KeyboardInterrupt included).
    """
    outcome: _Outcome[T] = _Outcome()

    def run(index: int) -> None:
        try:
            outcome.results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread, below
            if outcome.fail(error):
                on_failure(index, error)

    threads = [
        threading.Thread(target=run, args=(index,), name=f"layerstream-device-{index}")
        for index in range(1, len(works))
    ]
    try:
        for thread in threads:
            thread.start()
        run(0)
    except KeyboardInterrupt as interrupt:  # between two lines of this function
        if outcome.fail(interrupt):
            on_failure(0, interrupt)
    _join_all(threads, outcome, on_failure)
    if outcome.first_error is not None:
        raise outcome.first_error
    return [outcome.results[index] for index in range(len(works))]


def _join_all(
    threads: list[threading.Thread], outcome: _Outcome[T], on_failure: Callable[[int, BaseException], None]
) -> None:
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join(_CHECK_EVERY_S)
            except KeyboardInterrupt as interrupt:  # Ctrl-C while only other devices work: stop them and wait
                if outcome.fail(interrupt):
                    on_failure(0, interrupt)
