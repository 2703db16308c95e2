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


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return made


def without_blank_end(rows: list[str]) -> list[str]:
    while rows and not rows[-1]:
        rows = rows[:-1]
    return rows


def test_the_status_stands_on_the_line_below_the_text(screen: Screen) -> None:
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
        both = Screen()
        patch.setattr(sys, "stdout", both)
        patch.setattr(sys, "stderr", both)
        patch.setenv("COLUMNS", str(WIDTH))
        patch.setenv("TERM", "xterm")
        with StatusLine(lambda: "status " * 9) as status:
            for piece in pieces:
                status.write(piece)
    assert without_blank_end(both.shown()) == without_blank_end(alone.shown())


def test_the_line_is_redrawn_while_no_text_comes(screen: Screen) -> None:
    drawn_twice = threading.Event()
    calls = []

    def render() -> str:
        calls.append(None)
        if len(calls) == 2:
            drawn_twice.set()
        return f"call {len(calls)}"

    with StatusLine(render):
        assert drawn_twice.wait(timeout=30)


def test_an_error_inside_leaves_no_status_and_no_thread_behind(screen: Screen) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), StatusLine(lambda: "busy") as status:
        status.write("text")
        raise RuntimeError
    assert without_blank_end(screen.shown()) == ["text"]
    assert threading.active_count() == before


@pytest.mark.parametrize("settings_", [{"TERM": "dumb"}, {}])
def test_without_a_capable_terminal_only_the_text_is_written(settings_: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), Screen() if settings_ else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for name, value in settings_.items():
        monkeypatch.setenv(name, value)
    with StatusLine(lambda: "busy") as status:
        status.write("text")
    assert out.getvalue() == "text"
    assert err.getvalue() == ""


def test_text_that_is_piped_away_gets_no_control_characters(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with StatusLine(lambda: "busy") as status:
        status.write("text")
    assert piped.getvalue() == "text"
