"""Ctrl-C in a real process: one line that says what is kept, status 130, and never a traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

MAIN = "import sys; from layerstream.cli.app import main; sys.exit(main())"
# A step that reports that it has begun and then lasts: as something that Python can interrupt, and as threads
# that it cannot. It sleeps in short steps, because Python sees a signal that comes just before a sleep only
# after it.
ENDLESS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from layerstream.cli import backend

def sleep(*arguments, **options):
    print("begun", flush=True)
    for _ in range(6000):
        time.sleep(0.1)

def wait_for_threads(*arguments, **options):
    with ThreadPoolExecutor(1) as executor:
        executor.submit(time.sleep, 600)
        sleep()

backend.{step} = {kind}
"""


def start(program: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command,
        env=environment,
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def interrupt(process: subprocess.Popen[str], times: int = 1) -> tuple[str, str]:
    """Send the process SIGINT; return what it prints to stdout from then on, and its last line on stderr."""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in (err or "")
    return out, err.splitlines()[-1] if err else ""


def test_an_answer_that_is_cut_off_ends_its_line(tiny_llama_dir: Path) -> None:
    process = start(MAIN, "run", tiny_llama_dir, "-p", "hello", "-n", 450, "--budget", "min", "--quiet")
    assert process.stdout is not None
    process.stdout.read(1)
    out, line = interrupt(process)
    assert out.endswith("\n")
    assert line.startswith("interrupted: the answer was cut off after ")
    assert line.endswith(" of at most 450 tokens")


@pytest.mark.parametrize("command", ["batch", "score"])
def test_a_job_says_how_many_rows_it_has_kept_and_goes_on_from_there(
    command: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    row = {"prompt": "hello"} if command == "batch" else {"prefix": "hello", "suffixes": [" there", " you"]}
    source.write_text("\n".join(json.dumps({**row, "id": number}) for number in range(400)) + "\n")
    arguments = [command, source, target, "-m", tiny_llama_dir, "--budget", "min", "--max-rows", "1"]
    process = start(MAIN, *arguments, "--quiet", *(["-n", 20] if command == "batch" else []))
    while process.poll() is None and (not target.exists() or target.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    _, line = interrupt(process)
    num_results = target.read_bytes().count(b"\n") - len(["the header"])
    assert 2 <= num_results < 400
    said = re.fullmatch(r"interrupted: (\d+) of 400 rows have a result in (.*); run it again to go on", line)
    assert said is not None, line
    assert said[2] == str(target)
    # a row may be written while the line is, and is then not counted
    assert num_results - 1 <= int(said[1]) <= num_results


@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        ("load_tokenizer", ["run", "MODEL", "-p", "hello"]),
        ("load_with", ["run", "MODEL", "-p", "hello"]),
        ("plan_with", ["plan", "MODEL"]),
        ("probe_machine", ["probe"]),
        ("profile_model", ["estimate", "MODEL"]),
        ("load_tokenizer", ["trace", "MODEL"]),
    ],
)
def test_every_step_of_every_command_can_be_interrupted(
    step: str, arguments: list[str], tiny_llama_dir: Path
) -> None:
    given = [argument.replace("MODEL", str(tiny_llama_dir)) for argument in arguments]
    process = start(ENDLESS.format(step=step, kind="sleep") + MAIN, *given)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert interrupt(process) == ("", "interrupted: nothing was saved")


@pytest.mark.parametrize("times", [1, 2], ids=["after a short time", "at the second Ctrl-C"])
def test_what_waits_for_threads_as_a_download_does_is_ended_too(times: int) -> None:
    program = ENDLESS.format(step="load_tokenizer", kind="wait_for_threads") + MAIN
    process = start(program, "run", "org/model", "-p", "hello")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    _, line = interrupt(process, times)
    assert line == (
        "interrupted: nothing was saved, but files of the model that were downloaded whole stay in the cache"
    )


def test_on_a_terminal_the_line_stands_below_the_echoed_key(tiny_llama_dir: Path) -> None:
    terminal, inner = pty.openpty()
    program = ENDLESS.format(step="load_tokenizer", kind="sleep") + MAIN
    process = start(program, "run", tiny_llama_dir, "-p", "hello", stderr=inner)
    os.close(inner)
    shown: list[str] = []
    reading = threading.Thread(target=_read_all, args=(terminal, shown))
    reading.start()
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    interrupt(process)
    reading.join()
    os.close(terminal)
    assert "".join(shown).endswith("\r\ninterrupted: nothing was saved\r\n")


def _read_all(terminal: int, shown: list[str]) -> None:
    # a terminal whose last writer is gone fails to be read
    with suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown.append(piece.decode())
