"""A check that no thread is left running.

Test kit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_S = 5.0

LIBRARY_THREADS = {"tqdm_monitor"}
"""Threads that a library starts once and keeps for the whole process."""


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Assert that every thread started inside ends, at most `GRACE_S` seconds after the block."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := _started_since(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads left running: {left}"


def _started_since(before: set[threading.Thread]) -> list[str]:
    new = [thread.name for thread in threading.enumerate() if thread not in before]
    return [name for name in new if name not in LIBRARY_THREADS]
