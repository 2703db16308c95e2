"""The status line never damages the text above it: what a terminal shows is computed by a small terminal made here."""

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
    """A terminal of 20 by 6 that understands what the status line uses; rows that scroll out are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[str] = []
        self.rows = [[" "] * WIDTH for _ in range(HEIGHT)]
        self.row = self.column = 0
        self.hangs = False  # a character was put into the last column; the next one wraps first
        self.saved = (0, 0, False)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for token in TOKENS.findall(text):
            self._obey(token)
        return len(text)

    def _obey(self, token: str) -> None:
        if token == "\x1b7":
            self.saved = (self.row, self.column, self.hangs)
        elif token == "\x1b8":
            self.row, self.column, self.hangs = self.saved
        elif token == "\x1b[J":
            self.rows[self.row][self.column :] = [" "] * (WIDTH - self.column)
            self.rows[self.row + 1 :] = [[" "] * WIDTH for _ in self.rows[self.row + 1 :]]
        elif token.endswith("m") and token.startswith("\x1b"):
            return
        else:
            self._move_or_put(token)

    def _move_or_put(self, token: str) -> None:
        if token in ("\n", "\r", "\x1bD", "\x1b[A", "\x1b[B"):
            self.hangs = False
            self.column = 0 if token in "\n\r" else self.column
            if token in ("\n", "\x1bD"):
                self._down()
            self.row += {"\x1b[A": -1, "\x1b[B": 1}.get(token, 0)
            self.row = min(max(self.row, 0), HEIGHT - 1)
            return
        assert not token.startswith("\x1b"), f"a terminal would have to understand {token!r}"
        if self.hangs:
            self.column = 0
            self._down()
        self.rows[self.row][self.column] = token
        self.hangs = self.column == WIDTH - 1
        self.column = min(self.column + 1, WIDTH - 1)

    def _down(self) -> None:
        if self.row < HEIGHT - 1:
            self.row += 1
            return
        self.gone.append("".join(self.rows.pop(0)))
        self.rows.append([" "] * WIDTH)

    def shown(self) -> list[str]:
        return [row.rstrip() for row in [*self.gone, *("".join(row) for row in self.rows)]]


def attached_screen(patch: pytest.MonkeyPatch) -> Screen:
    """Make stdout and stderr one terminal, from inside a test: pytest puts its own in place before each phase."""
    made = Screen()
    patch.setattr(sys, "stdout", made)
    patch.setattr(sys, "stderr", made)
    patch.setenv("COLUMNS", str(WIDTH))
    patch.setenv("TERM", "xterm")
    return made


def without_blank_end(rows: list[str]) -> list[str]:
    while rows and not rows[-1]:
        rows = rows[:-1]
    return rows


def test_the_status_stands_on_the_line_below_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    with StatusLine(lambda: "12 % done") as status:
        status.write("one two")
        assert without_blank_end(screen.shown()) == ["one two", "12 % done"]
        status.write(" three\nfour")
        assert without_blank_end(screen.shown()) == ["one two three", "four", "12 % done"]
    assert without_blank_end(screen.shown()) == ["one two three", "four"]


@settings(deadline=None)
@given(pieces=st.lists(st.text(alphabet="ab \n", max_size=30), max_size=12))
def test_whatever_is_written_the_text_is_what_it_would_be_without_a_status(pieces: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        alone = Screen()
        alone.write("".join(pieces))
        both = attached_screen(patch)
        with StatusLine(lambda: "status " * 9) as status:
            for piece in pieces:
                status.write(piece)
    assert without_blank_end(both.shown()) == without_blank_end(alone.shown())


def test_a_text_that_ends_with_the_last_column_keeps_that_character(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    with StatusLine(lambda: "12 % done") as status:
        status.write("a" * WIDTH)
        status.write("b")
        assert without_blank_end(screen.shown()) == ["a" * WIDTH, "b", "12 % done"]


def test_text_below_an_old_status_has_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    with StatusLine(lambda: "12 % done") as status:
        for _ in range(HEIGHT + 2):
            status.write("x\n")
    assert without_blank_end(screen.shown()) == ["x"] * (HEIGHT + 2)


def test_the_line_is_redrawn_while_no_text_comes(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_error_inside_leaves_no_status_and_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = attached_screen(monkeypatch)
    before = threading.active_count()

    def fail_while_drawing() -> None:
        with StatusLine(lambda: "busy") as status:
            status.write("text")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_drawing()
    assert without_blank_end(screen.shown()) == ["text"]
    assert threading.active_count() == before


@pytest.mark.parametrize("settings_", [{"TERM": "dumb"}, {}])
def test_without_a_capable_terminal_only_the_text_is_written(
    settings_: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = io.StringIO(), Screen() if settings_ else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for name, value in settings_.items():
        monkeypatch.setenv(name, value)
    with StatusLine(lambda: "busy") as status:
        status.write("text")
    assert out.getvalue() == "text"
    assert err.getvalue() == ""


def test_text_that_is_piped_away_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    attached_screen(monkeypatch)
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with StatusLine(lambda: "busy") as status:
        status.write("text")
    assert piped.getvalue() == "text"
