"""The status line never damages the text above it, as a small terminal emulator shows."""

from __future__ import annotations

import io
import re
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstream.cli.terminal import StatusLine

WIDTH, HEIGHT = 20, 6
TOKENS = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z]|[78D])|.", re.DOTALL)


class Screen(io.StringIO):
    """A terminal of 20 by 6 that knows the sequences the status line uses, and keeps rows that scroll out."""

    def __init__(self) -> None:
        super().__init__()
        self.scrolled_out: list[str] = []
        self.rows = [[" "] * WIDTH for _ in range(HEIGHT)]
        self.row = self.column = 0
        self.is_wrap_pending = False  # the last column is full; the next character wraps first
        self.saved = (0, 0, False)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for token in TOKENS.findall(text):
            self._obey(token)
        return len(text)

    def _obey(self, token: str) -> None:
        if token == "\x1b7":
            self.saved = (self.row, self.column, self.is_wrap_pending)
        elif token == "\x1b8":
            self.row, self.column, self.is_wrap_pending = self.saved
        elif token == "\x1b[J":
            self.rows[self.row][self.column :] = [" "] * (WIDTH - self.column)
            self.rows[self.row + 1 :] = [[" "] * WIDTH for _ in self.rows[self.row + 1 :]]
        elif token.endswith("m") and token.startswith("\x1b"):
            return
        else:
            self._move_or_put(token)

    def _move_or_put(self, token: str) -> None:
        if token in ("\n", "\r", "\x1bD", "\x1b[A", "\x1b[B"):
            self.is_wrap_pending = False
            self.column = 0 if token in "\n\r" else self.column
            if token in ("\n", "\x1bD"):
                self._down()
            self.row += {"\x1b[A": -1, "\x1b[B": 1}.get(token, 0)
            self.row = min(max(self.row, 0), HEIGHT - 1)
            return
        assert not token.startswith("\x1b"), f"unknown sequence {token!r}"
        if self.is_wrap_pending:
            self.column = 0
            self._down()
        self.rows[self.row][self.column] = token
        self.is_wrap_pending = self.column == WIDTH - 1
        self.column = min(self.column + 1, WIDTH - 1)

    def _down(self) -> None:
        if self.row < HEIGHT - 1:
            self.row += 1
            return
        self.scrolled_out.append("".join(self.rows.pop(0)))
        self.rows.append([" "] * WIDTH)

    def shown(self) -> list[str]:
        return [row.rstrip() for row in [*self.scrolled_out, *("".join(row) for row in self.rows)]]


def attached_screen(patch: pytest.MonkeyPatch) -> Screen:
    """Make stdout and stderr one terminal. Call it inside a test: pytest replaces both before each phase."""
    screen = Screen()
    patch.setattr(sys, "stdout", screen)
    patch.setattr(sys, "stderr", screen)
    patch.setenv("COLUMNS", str(WIDTH))
    patch.setenv("TERM", "xterm")
    return screen


def without_trailing_blanks(rows: list[str]) -> list[str]:
    while rows and not rows[-1]:
        rows = rows[:-1]
    return rows


def test_the_status_is_on_the_line_below_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    with StatusLine(lambda: "12 % done") as status:
        status.write("one two")
        assert without_trailing_blanks(screen.shown()) == ["one two", "12 % done"]
        status.write(" three\nfour")
        assert without_trailing_blanks(screen.shown()) == ["one two three", "four", "12 % done"]
    assert without_trailing_blanks(screen.shown()) == ["one two three", "four"]


@settings(deadline=None)
@given(pieces=st.lists(st.text(alphabet="ab \n", max_size=30), max_size=12))
def test_the_text_is_the_same_as_without_a_status(pieces: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        alone = Screen()
        alone.write("".join(pieces))
        both = attached_screen(patch)
        with StatusLine(lambda: "status " * 9) as status:
            for piece in pieces:
                status.write(piece)
    assert without_trailing_blanks(both.shown()) == without_trailing_blanks(alone.shown())


def test_text_that_ends_in_the_last_column_keeps_its_last_character(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    with StatusLine(lambda: "12 % done") as status:
        status.write("a" * WIDTH)
        status.write("b")
        assert without_trailing_blanks(screen.shown()) == ["a" * WIDTH, "b", "12 % done"]


def test_text_overwrites_an_old_status_completely(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    with StatusLine(lambda: "12 % done") as status:
        for _ in range(HEIGHT + 2):
            status.write("x\n")
    assert without_trailing_blanks(screen.shown()) == ["x"] * (HEIGHT + 2)


def test_the_status_is_redrawn_while_there_is_no_new_text(monkeypatch: pytest.MonkeyPatch) -> None:
    attached_screen(monkeypatch)
    drawn_twice = threading.Event()
    calls = []

    def render() -> str:
        calls.append(None)
        if len(calls) == 2:
            drawn_twice.set()
        return f"call {len(calls)}"

    with StatusLine(render):
        assert drawn_twice.wait(timeout=30)


def test_an_error_inside_leaves_no_status_and_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    before = threading.active_count()

    def fail_while_drawing() -> None:
        with StatusLine(lambda: "busy") as status:
            status.write("text")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_drawing()
    assert without_trailing_blanks(screen.shown()) == ["text"]
    assert threading.active_count() == before


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {}])
def test_without_a_capable_terminal_only_text_is_written(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = io.StringIO(), Screen() if environment else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with StatusLine(lambda: "busy") as status:
        status.write("text")
    assert out.getvalue() == "text"
    assert err.getvalue() == ""


def test_piped_text_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    attached_screen(monkeypatch)
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with StatusLine(lambda: "busy") as status:
        status.write("text")
    assert piped.getvalue() == "text"
