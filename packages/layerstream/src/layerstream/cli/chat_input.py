"""Read the messages of a chat, line by line from a terminal or a pipe, and what Ctrl-C does meanwhile.

A line that ends with a backslash goes on, and so does everything between two lines of three quotes. No model
is known here.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType, TracebackType
from typing import Any

PROMPT = "> "
GOES_ON = ". "
_QUOTES = '"""'

ReadLine = Callable[[str], str]
"""Shows a prompt and returns a line without its end; raises EOFError when there is none."""


def read_message(read_line: ReadLine) -> str | None:
    """Return the next message, which may have several lines; None at the end of the input."""
    try:
        line = read_line(PROMPT)
    except EOFError:
        return None
    is_block = line.strip() == _QUOTES
    lines = [] if is_block else [line.removesuffix("\\")]
    # the end of the input ends an open message too
    with suppress(EOFError):
        if is_block:
            while (line := read_line(GOES_ON)).strip() != _QUOTES:
                lines.append(line)
        while not is_block and line.endswith("\\"):
            line = read_line(GOES_ON)
            lines.append(line.removesuffix("\\"))
    return "\n".join(lines)


def line_reader() -> ReadLine:
    """Return what reads lines: on a terminal with editing and a history, otherwise without a prompt."""
    if not sys.stdin.isatty():
        return _read_plain_line
    if sys.stdout.isatty():
        # its import changes what input() does; not every Python has it
        with suppress(ImportError):
            import_module("readline")
        return input
    return _read_prompted_line


def _read_plain_line(_: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _read_prompted_line(prompt: str) -> str:
    # stdout is a file: the prompt is no part of the answers
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return _read_plain_line(prompt)


class StopKey:
    """What Ctrl-C does in a chat; a context manager around it.

    While a line is read, it raises KeyboardInterrupt. At any other time it only asks for the end of the
    answer, and the second time within one answer, does what it did before the chat.

    Attributes:
        is_pressed: it was pressed since the last line was read.
    """

    def __init__(self) -> None:
        """Set up; nothing changes before the context is entered."""
        self.is_pressed = False
        self._is_reading = False
        self._before: Any = None

    def __enter__(self) -> StopKey:
        """Take over Ctrl-C, unless it is ignored; only the main thread can."""
        before = signal.getsignal(signal.SIGINT)
        if callable(before) and threading.current_thread() is threading.main_thread():
            self._before = before
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at once inside; what was pressed before is forgotten."""
        self.is_pressed = False
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_reading:
            raise KeyboardInterrupt
        if self.is_pressed:
            signal.signal(signal.SIGINT, self._before)
            self._before(number, frame)
        self.is_pressed = True
