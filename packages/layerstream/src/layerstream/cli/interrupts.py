"""What Ctrl-C does: the command ends with one line that says what is kept, and status 130.

The first Ctrl-C raises KeyboardInterrupt as usual, so that files and models are closed. What Python cannot
interrupt, such as a download that waits for its threads, gets a short time; a second Ctrl-C ends the process
at once. That is safe: results are on disk line by line, and nothing else is written over.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

STATUS = 130
"""The exit status after Ctrl-C, as shells have it."""

_GRACE_S = 2.0
_SHOW_CURSOR_ERASE_BELOW = "\x1b[?25h\x1b[J"

_kept: list[Callable[[], str]] = []


@contextmanager
def kept_if_interrupted(describe: Callable[[], str]) -> Iterator[None]:
    """Say after Ctrl-C what `describe` returns: what is kept of the work inside."""
    _kept.append(describe)
    try:
        yield
    finally:
        _kept.remove(describe)


class Interrupts:
    """Ends the command on Ctrl-C; a context manager around it."""

    def __init__(self, *, owns_process: bool) -> None:
        """Set up.

        Args:
            owns_process: the process ends with the command, so it may be ended from here.
        """
        self._owns_process = owns_process
        self._describe: Callable[[], str] = _nothing
        self._reported = threading.Lock()
        self._is_asked = False

    def __enter__(self) -> Interrupts:
        """Take over Ctrl-C, unless somebody else has."""
        if self._owns_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: until the process ends, a second Ctrl-C still ends it at once."""

    def report(self) -> None:
        """Print what is kept, on a line of its own; only once."""
        if not self._reported.acquire(blocking=False):
            return
        # a terminal shows ^C, in the middle of whatever line it was on
        beginning = "\n" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{beginning}interrupted: {self._describe()}\n")
        sys.stderr.flush()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked:
            self._end_process()
        self._is_asked = True
        self._describe = _kept[-1] if _kept else _nothing
        waiting = threading.Timer(_GRACE_S, self._end_process)
        waiting.daemon = True
        waiting.start()
        raise KeyboardInterrupt

    def _end_process(self) -> NoReturn:
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR_ERASE_BELOW)
        # in a thread, because this one may hold a lock that describing needs
        reporting = threading.Thread(target=self.report, daemon=True)
        reporting.start()
        reporting.join(_GRACE_S)
        os._exit(STATUS)


def _nothing() -> str:
    return "nothing was saved"
