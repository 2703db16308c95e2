"""A status line below text that is still being written.

Streamed text usually ends in the middle of a line, so a display that redraws whole lines (rich's Live) would
break it. Here the status is on the line below the text. To draw it, the cursor is saved, moved down and
restored. Before more text is written, everything below the cursor is erased. The text itself is never
touched, so the terminal's own wrapping, scrolling and selecting work. If stdout is not the terminal, the text
is written without any of this.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from . import lazy_rich

_DOWN_KEEPING_COLUMN = "\x1bD\x1b[A"  # scrolls on the last row, so that there is a row below the text
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_NEXT_ROW = "\x1b[B\r"
_ERASE_BELOW = "\x1b[J"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_INTERVAL_S = 0.15


class StatusLine:
    """Show what `render` returns below the streamed text, several times per second; a context manager.

    Draws only if stderr is a terminal that can move its cursor. Every thread may write.
    """

    def __init__(self, render: Callable[[], str], *, shown: bool = True) -> None:
        """Set up; nothing is drawn before the context is entered.

        Args:
            render: returns the line to show, which is cut to the terminal's width. It is called on the
                drawing thread and on the thread that writes.
            shown: False never draws; `write` still works.
        """
        self._render = render
        self._out: TextIO = sys.stdout
        self._err: TextIO = sys.stderr
        self._draws = shown and self._err.isatty() and os.environ.get("TERM", "") != "dumb"
        self._shares_terminal = self._draws and self._out.isatty()
        self._style = ("", "") if os.environ.get("NO_COLOR") else (_DIM, _PLAIN)
        self._is_drawn = False
        self._column = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StatusLine:
        """Start drawing."""
        if self._draws:
            self._thread = threading.Thread(target=self._tick, name="layerstream-status", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and erase the line."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._erase()

    def write(self, text: str) -> None:
        """Write `text` to stdout at once, above the status line."""
        with self._lock:
            if self._shares_terminal:
                self._erase()
            self._out.write(text)
            self._out.flush()
            self._track_column(text)
            if self._shares_terminal:
                self._draw()

    def _tick(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            with self._lock:
                self._draw()

    def _track_column(self, text: str) -> None:
        _, newline, rest = text.rpartition("\n")
        self._column = lazy_rich.cell_len(rest) if newline else self._column + lazy_rich.cell_len(rest)

    def _erase(self) -> None:
        if self._is_drawn:
            self._err.write(_ERASE_BELOW)
            self._err.flush()
            self._is_drawn = False

    def _draw(self) -> None:
        if not self._draws:
            return
        columns = shutil.get_terminal_size().columns
        if self._column and self._column % columns == 0:
            # The cursor hangs after the last column: moving it or erasing would lose the last character.
            return
        line = self._render()
        line = line if lazy_rich.cell_len(line) < columns else lazy_rich.set_cell_size(line, columns - 1)
        start, end = self._style
        self._err.write(f"{_DOWN_KEEPING_COLUMN}{_SAVE}{_NEXT_ROW}{_ERASE_BELOW}{start}{line}{end}{_RESTORE}")
        self._err.flush()
        self._is_drawn = True
