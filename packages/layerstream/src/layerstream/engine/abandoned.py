"""Stop what moves the weights of a model that was dropped without `close()`.

Its threads would go on for ever, and copies under way would write into memory that others have by then.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from .build import BuiltModel


def close_when_dropped(built: BuiltModel) -> Callable[[], None]:
    """Close all that moves the weights of `built` once nobody can run it any more.

    That is when the hooks of every replica are gone: a block that somebody keeps still streams.

    Returns:
        A function that calls this off, for `close()`, which does the same.
    """
    hooks = [parts.hooks for parts in built.replicas if parts.hooks is not None]
    streams = [parts.stream for parts in built.replicas if parts.stream is not None]
    rest = [each for each in (built.prefetcher, built.reader, *built.arenas) if each is not None]
    leftovers = _Leftovers(len(hooks), [each.close for each in (*streams, *rest)])
    finalizers = [weakref.finalize(each, leftovers.lose_one) for each in hooks]
    for finalizer in finalizers:
        finalizer.atexit = False

    def call_off() -> None:
        for finalizer in finalizers:
            finalizer.detach()

    return call_off


class _Leftovers:
    """What is left of a model. It must not hold the model itself."""

    def __init__(self, num_users: int, closes: list[Callable[[], None]]) -> None:
        self._num_users, self._closes = num_users, closes

    def lose_one(self) -> None:
        """Count a user that is gone; with the last one, close everything.

        Python may call this in the middle of anything, also where a lock is held, hence the thread.
        """
        self._num_users -= 1
        if not self._num_users:
            threading.Thread(target=self._close, name="layerstream-close", daemon=True).start()

    def _close(self) -> None:
        for close in self._closes:
            close()
