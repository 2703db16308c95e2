"""Run one piece of work for each device at the same time, and tell the first error.

Layer: composition. Knows threads; knows nothing of models or weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_TICK_S = 0.5
"""How often the calling thread looks for Ctrl-C while it waits, where a wait cannot be interrupted."""


@dataclass(slots=True)
class _Outcome(Generic[T]):
    """What the works have come to.

    Attributes:
        results: by number, those that have returned.
        first_error: of the one that failed first.
    """

    results: dict[int, T] = field(default_factory=dict)
    first_error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: BaseException) -> bool:
        """Note an error; return whether it is the first."""
        with self.lock:
            if self.first_error is not None:
                return False
            self.first_error = error
            return True


def run_in_parallel(
    works: Sequence[Callable[[], T]], *, on_failure: Callable[[int, BaseException], None]
) -> list[T]:
    """Return the results of all `works`, run at the same time: the first in the calling thread, each other in one of its own.

    Returns or raises only when every one of them has ended.

    Args:
        works: what to run.
        on_failure: called with the number and the error of the work that failed first; it makes the others end.

    Raises:
        BaseException: the first error of a work (KeyboardInterrupt included).
    """
    outcome: _Outcome[T] = _Outcome()

    def run(number: int) -> None:
        try:
            outcome.results[number] = works[number]()
        except BaseException as error:  # noqa: BLE001  (handed on to the caller, below)
            if outcome.fail(error):
                on_failure(number, error)

    threads = [
        threading.Thread(target=run, args=(number,), name=f"layerstream-device-{number}")
        for number in range(1, len(works))
    ]
    try:
        for thread in threads:
            thread.start()
        run(0)
    except KeyboardInterrupt as interrupt:  # between two lines of ours
        if outcome.fail(interrupt):
            on_failure(0, interrupt)
    _join_all(threads, outcome, on_failure)
    if outcome.first_error is not None:
        raise outcome.first_error
    return [outcome.results[number] for number in range(len(works))]


def _join_all(
    threads: list[threading.Thread], outcome: _Outcome[T], on_failure: Callable[[int, BaseException], None]
) -> None:
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join(_TICK_S)
            except (
                KeyboardInterrupt
            ) as interrupt:  # Ctrl-C while only other devices work: they are stopped, and waited for
                if outcome.fail(interrupt):
                    on_failure(0, interrupt)
