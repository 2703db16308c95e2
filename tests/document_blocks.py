"""What documents show in code blocks, and how the tests run it.

Where a document names the default model, the Hub, a card or a path of the reader's, the tests put a tiny
checkpoint, an adapter for it, or the CPU. A block after `<!-- not executed: reason -->` is left out; a `text`
block after `<!-- output -->` is exactly what the block above it prints; a block with a `title` is the file of
that name.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerstream.cli.app import main as layerstream_main
from layerstream_compare.cli import main as compare_main

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<mark><!-- (?:not executed:[^>]*|output) -->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "layerstream": layerstream_main,
    "layerstream-compare": compare_main,
}
SHELL = ("console", "bash", "sh", "shell")
CHECKED_ONLY = ("nox ", "python3 noxfile.py", "pip install", "python -m")
ADAPTERS = re.compile(r"path/to/adapter[\w-]*|path-or-hub-id")
MODELS = re.compile(
    r"HuggingFaceTB/SmolLM2-135M-Instruct|meta-llama/[\w.-]+|/?path/to/(?!adapter)[\w.-]+|SmolLM2-135M-Instruct"
)
SEVERAL_CARDS = re.compile(r"^.*cuda:1.*$", re.MULTILINE)
"""Lines that run on several cards; a single one is part of a machine that is only simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One code block of a document.

    Attributes:
        language: what the fence names.
        title: the file that it is; empty for all others.
        code: its text.
        is_output: it is what the block above it prints.
        is_executed: it is not marked as one that no test runs.
    """

    language: str
    title: str
    code: str
    is_output: bool
    is_executed: bool


def blocks_of(document: Path) -> list[Block]:
    """Return the code blocks of a document, in their order."""
    return [
        Block(
            language=found["language"],
            title=found["title"] or "",
            code=re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            is_output="output" in (found["mark"] or "").split(),
            is_executed="not executed" not in (found["mark"] or ""),
        )
        for found in BLOCK.finditer(document.read_text(encoding="utf-8"))
    ]


def command_lines(block: Block) -> list[str]:
    """Return the commands of a shell block, continued lines joined, prompts and comments stripped."""
    text = block.code.replace("\\\n", " ")
    lines = [re.sub(r"^\$\s*", "", line).split(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands_of(*documents: Path) -> list[str]:
    """Return the commands of several documents' shell blocks that are not marked."""
    found = [block for path in documents for block in blocks_of(path)]
    return [
        line
        for block in found
        if block.language in SHELL and block.is_executed
        for line in command_lines(block)
    ]


def is_program(command: str) -> bool:
    """Whether a command is one of ours, which the tests run."""
    return command.split()[0] in COMMANDS


def with_tiny_model(text: str, model: Path, adapter: Path | None = None) -> str:
    """Return code or a command with a tiny model, its adapter and the CPU in place of what the text names."""
    if adapter is not None:
        text = ADAPTERS.sub(str(adapter), text)
    on_cpu = SEVERAL_CARDS.sub(lambda line: re.sub(r"cuda:\d+", "cpu", line[0]), text)
    return MODELS.sub(str(model), on_cpu)


def run_command(command: str) -> None:
    """Run one of our commands in this process.

    Raises:
        AssertionError: its exit status is not 0.
    """
    program, *arguments = shlex.split(command)
    # a budget that is sensible for the model named may be anything to the tiny one
    sizes = ("--budget", "--host-budget")
    arguments = [
        "min" if number and arguments[number - 1] in sizes and each not in ("auto",) else each
        for number, each in enumerate(arguments)
    ]
    status = COMMANDS[program](arguments)
    assert status == 0, f"{command} ended with status {status}"


def run_blocks(blocks: list[Block], replace: Callable[[str], str], name: str) -> None:
    """Run a document's blocks in their order, in the working directory; its Python has one namespace.

    Raises:
        AssertionError: a command failed, or something printed other text than the document shows.
    """
    namespace: dict[str, Any] = {"__name__": name}
    printed = ""
    for number, block in enumerate(blocks, 1):
        if block.is_output:
            assert printed.rstrip() == block.code.rstrip(), f"{name}, block {number}: it prints another text"
        elif block.title and block.is_executed:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(replace(block.code), encoding="utf-8")
        elif block.language == "python" and block.is_executed:
            printed = run_python(replace(block.code), namespace, f"{name}, python block {number}")
        elif block.language in SHELL and block.is_executed:
            for command in filter(is_program, command_lines(block)):
                run_command(replace(command))


def run_python(code: str, namespace: dict[str, Any], name: str) -> str:
    """Run one block of Python and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, name, "exec"), namespace)
    return output.getvalue()


def sessions_of(command: str) -> list[str]:
    """Return the sessions that a nox command names."""
    words = shlex.split(command.split(" -- ")[0])
    first = words.index("noxfile.py") + 1 if "noxfile.py" in words else 1
    return [word for word in words[first:] if not word.startswith("-")]


def defined_sessions() -> Iterator[str]:
    """Yield the names of the noxfile's sessions."""
    yield from re.findall(
        r"^@nox\.session.*\n(?:@nox\.\w+.*\n)*def (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE
    )


def missing_folders(command: str) -> list[str]:
    """Return the folders of this repository that a pip command installs and that are no packages."""
    local = [word.split("[")[0] for word in shlex.split(command) if "packages/" in word or "apps/" in word]
    return [path for path in local if not (ROOT / path / "pyproject.toml").exists()]
