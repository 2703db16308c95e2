"""`layerstream chat` in a real terminal: text as it comes, Ctrl-C, Ctrl-D, editing and the line below."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# each starts a program that loads torch
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
PROMPT = "\n> "
# The terminal becomes the process's own, so that its keys become signals.
MAIN = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from layerstream.cli.app import main
sys.exit(main())
"""
# As on a slow disk, the prompt's sweep lasts.
SLOW = """
import time
from layerstream.cli import backend
load_with = backend.load_with

def load_slowly(*arguments, **options):
    streamed = load_with(*arguments, **options)
    streamed.model.register_forward_pre_hook(sleep_once)
    return streamed

def sleep_once(module, arguments):
    time.sleep(delays.pop() if delays else 0)

delays = [1.5]
backend.load_with = load_slowly
"""
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[78D=>])")
LIMIT_S = 100
NUDGE_S = 0.5


def with_first(program: str) -> str:
    """Return `MAIN` with `program` in front of the command."""
    return MAIN.replace("sys.exit", program + "sys.exit")


class Terminal:
    """A chat in a terminal of its own, and what it has shown."""

    def __init__(self, *arguments: object, program: str = MAIN) -> None:
        self._master, slave = pty.openpty()
        without = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "INPUTRC")}
        environment = {**without, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", program, "chat", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
        )
        os.close(slave)
        self.shown = ""
        self._read_to = 0

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait until `text` is shown; return what was shown since the last wait, without escape codes."""
        deadline = time.monotonic() + LIMIT_S
        while (end := self._plain().find(text, self._read_to)) < 0:
            assert self._read(deadline), f"{text!r} is not in {self._plain()[self._read_to :]!r}"
        begin, self._read_to = self._read_to, end + len(text)
        return self._plain()[begin : self._read_to]

    def leave(self) -> None:
        """Press Ctrl-C at the prompt until the program begins to end."""
        self.press(CTRL_C)
        while self._read(time.monotonic() + NUDGE_S) is False and self.process.poll() is None:
            self.process.send_signal(signal.SIGWINCH)

    def ended(self) -> int:
        """Wait for the end; return the status."""
        deadline = time.monotonic() + LIMIT_S
        while self._read(deadline):
            pass
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _plain(self) -> str:
        # a prompt may be drawn over by readline, which returns to the first column
        return ESCAPES.sub("", self.shown).replace("\r\n", "\n")

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            piece = os.read(self._master, 4096) if ready else b""
        except OSError:  # the last writer is gone
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)

    def clear_the_line(self) -> None:
        """Press Ctrl-C at the prompt, and wait until it is noticed.

        Python may miss a signal that comes just before it waits for a key, until the next one: a change of
        the window's size.
        """
        self.press(CTRL_C)
        deadline = time.monotonic() + LIMIT_S
        while "Ctrl-C again" not in self._plain()[self._read_to :] and time.monotonic() < deadline:
            if not self._read(time.monotonic() + NUDGE_S):
                self.process.send_signal(signal.SIGWINCH)
        self.wait_for("Ctrl-C again, or Ctrl-D, leaves")
        self.wait_for(PROMPT)


@pytest.fixture(scope="module")
def talkative_dir(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model that never ends an answer by itself, with a long context."""
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path_factory.mktemp("talkative") / "model"))
    for name, changes in (
        ("config.json", {"eos_token_id": None, "max_position_embeddings": 100_000}),
        ("generation_config.json", {"eos_token_id": None}),
    ):
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_talk_in_a_terminal(tiny_llama_dir: Path, tmp_path: Path, terminals: list[Terminal]) -> None:
    pytest.importorskip("readline")
    terminal = Terminal(tiny_llama_dir, "-n", 8, "--budget", "min")
    terminals.append(terminal)
    assert "a context of 512 tokens" in terminal.wait_for(PROMPT)
    terminal.press("hello\r")
    shown = terminal.wait_for("the first after ")
    assert "yTS6z|" in shown and "8 tokens" in shown
    terminal.wait_for(PROMPT)
    terminal.press('"""\r')
    terminal.wait_for("\n. ")
    terminal.press("one\rtwo\r" + '"""\r')
    terminal.wait_for("the first after ")
    terminal.wait_for(PROMPT)
    terminal.press("/nonsense\r")
    terminal.wait_for("error: there is no command /nonsense")
    terminal.wait_for(PROMPT)
    terminal.press(f"/save {tmp_path / 'talk.json'}\r")
    terminal.wait_for("saved 4 messages")
    terminal.wait_for(PROMPT)
    terminal.press("/reset\r")
    terminal.wait_for("starts afresh")
    terminal.wait_for(PROMPT)
    # back to the first of the eight lines
    terminal.press(8 * UP + "\r")
    assert "8 tokens" in terminal.wait_for("the first after ")
    terminal.wait_for(PROMPT)
    terminal.press(CTRL_D)
    assert terminal.ended() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in saved[::2]] == ["hello", "one\ntwo"]
    assert "Traceback" not in terminal.shown


def test_ctrl_c_ends_an_answer_and_what_was_said_stays(
    talkative_dir: Path, tmp_path: Path, terminals: list[Terminal]
) -> None:
    options = ("-n", 20_000, "--context-tokens", 30_000, "--budget", "min")
    terminal = Terminal(talkative_dir, *options, program=with_first(SLOW))
    terminals.append(terminal)
    terminal.wait_for(PROMPT)
    terminal.press("hello\r")
    # the line below the text, in dim, once there is a speed
    assert "first token" in terminal.wait_for(" tokens/s · ")
    assert "\x1b[2m" in terminal.shown
    terminal.press(CTRL_C)
    figures = terminal.wait_for("stopped")
    terminal.wait_for(PROMPT)
    terminal.press(f"/save {tmp_path / 'talk.json'}\r")
    terminal.wait_for("saved 2 messages")
    terminal.wait_for(PROMPT)
    terminal.press("and?\r")
    terminal.wait_for(" tokens/s · ")
    terminal.press(CTRL_C)
    terminal.wait_for("stopped")
    terminal.wait_for(PROMPT)
    terminal.press("/exit\r")
    assert terminal.ended() == 0
    question, answer = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert question == {"role": "user", "content": "hello"}
    assert answer["role"] == "assistant" and 0 < len(answer["content"]) < 20_000
    said = re.search(r"(\d+) tokens · \S+ tokens/s · the first after", figures)
    # one token is one character, or a special token without text
    assert said is not None, figures
    assert len(answer["content"]) <= int(said[1])
    assert "Traceback" not in terminal.shown


def test_ctrl_c_at_the_prompt_clears_the_line_and_the_second_one_leaves(
    tiny_llama_dir: Path, terminals: list[Terminal]
) -> None:
    terminal = Terminal(tiny_llama_dir, "-n", 4)
    terminals.append(terminal)
    terminal.wait_for(PROMPT)
    terminal.press("some text")
    terminal.wait_for("some text")
    terminal.clear_the_line()
    terminal.press("/help\r")
    assert "some text" not in terminal.wait_for("/exit          leave")
    terminal.wait_for(PROMPT)
    # the command between them makes this one the first again
    terminal.clear_the_line()
    terminal.leave()
    assert terminal.ended() == 0
    assert "Traceback" not in terminal.shown and "interrupted:" not in terminal.shown


def test_while_the_model_is_loaded_ctrl_c_ends_the_program(
    tiny_llama_dir: Path, terminals: list[Terminal]
) -> None:
    waiting = """
import time
from layerstream.cli import backend

def load_with(*arguments, **options):
    print("begun", flush=True)
    for _ in range(6000):  # Python sees a signal that comes just before a sleep only after it
        time.sleep(0.1)

backend.load_with = load_with
"""
    terminal = Terminal(tiny_llama_dir, "-q", program=with_first(waiting))
    terminals.append(terminal)
    terminal.wait_for("begun")
    terminal.press(CTRL_C)
    terminal.wait_for("interrupted: nothing was saved")
    assert terminal.ended() == 130
