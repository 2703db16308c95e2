"""Messages of one and of several lines, and what Ctrl-C does in a chat."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from layerstream.cli.chat_input import GOES_ON, PROMPT, StopKey, line_reader, read_message


def messages_in(text: str) -> list[str]:
    """Return the messages that lines read from a pipe make."""
    lines = iter(text.splitlines())

    def read_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return list(iter(lambda: read_message(read_line), None))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("", []),
        ("one \\\ntwo\\\nthree\nfour\n", ["one \ntwo\nthree", "four"]),
        ('"""\none\n\n  two\\\n"""\nthree\n', ["one\n\n  two\\", "three"]),
        ('say """ loudly\nnow\n', ['say """ loudly', "now"]),
        ('"""\n"""\nnext', ["", "next"]),
        ("open\\", ["open"]),
        ('"""\nopen', ["open"]),
    ],
    ids=["lines", "nothing", "backslash", "block", "quotes inside", "empty block", "cut line", "cut block"],
)
def test_messages_may_have_several_lines(text: str, messages: list[str]) -> None:
    assert messages_in(text) == messages


def test_lines_that_go_on_have_another_prompt() -> None:
    prompts = []
    lines = iter(["a\\", "b", '"""', "c", '"""'])

    def read_line(prompt: str) -> str:
        prompts.append(prompt)
        return next(lines)

    assert [read_message(read_line), read_message(read_line)] == ["a\nb", "c"]
    assert prompts == [PROMPT, GOES_ON, PROMPT, GOES_ON, GOES_ON]


def test_a_pipe_is_read_without_a_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\r\n\ntwo"))
    read_line = line_reader()
    assert [read_line("> ") for _ in range(3)] == ["one", "", "two"]
    with pytest.raises(EOFError):
        read_line("> ")
    assert capsys.readouterr() == ("", "")


def test_with_a_terminal_and_a_file_for_the_answers_the_prompt_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Keyboard("hello\n"))
    assert line_reader()("> ") == "hello"
    assert capsys.readouterr() == ("", "> ")


@pytest.fixture
def presses() -> Iterator[list[int]]:
    """Count the presses of Ctrl-C that reach what was there before the chat."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_interrupts_reading_only(presses: list[int]) -> None:
    with StopKey() as key:
        with pytest.raises(KeyboardInterrupt), key.reading():
            press()
        assert not key.is_pressed
        press()
        assert key.is_pressed
        with key.reading():
            assert not key.is_pressed, "it is forgotten with the next line"
    assert presses == []


def test_a_second_ctrl_c_within_an_answer_does_what_it_did_before_the_chat(presses: list[int]) -> None:
    with StopKey():
        press()
        press()
        assert presses == [signal.SIGINT]
        press()
    press()
    assert presses == [signal.SIGINT] * 3


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopKey() as key:
            press()
            assert not key.is_pressed
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_ctrl_c_is_left_alone(presses: list[int]) -> None:
    entered = []

    def enter() -> None:
        with StopKey():
            entered.append(signal.getsignal(signal.SIGINT))

    expected = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [expected]
