"""What the README shows is executed.

Its `python` blocks run in their order in one namespace; its `layerstream ...` commands run too; of `nox` and
`pip` commands it is checked that what they name is there. Where the README names the default model, the Hub
or a path of the reader's, the tests put a tiny checkpoint. A block after `<!-- not executed: reason -->` is
left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerstream.cli.app import main as layerstream_main
from layerstream_compare.cli import main as compare_main

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<mark><!-- not executed:[^>]*-->\s*\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = {"layerstream ": layerstream_main, "layerstream-compare ": compare_main}
PLACEHOLDERS = re.compile(
    r"HuggingFaceTB/SmolLM2-135M-Instruct|path-or-hub-id|meta-llama/[\w.-]+|/path/to/[\w.-]+|path/to/[\w.-]+"
)


def readme_blocks(*languages: str) -> list[str]:
    documents = (ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")))
    found = [match for path in documents for match in BLOCK.finditer(path.read_text(encoding="utf-8"))]
    return [match["code"] for match in found if match["language"] in languages and not match["mark"]]


def commands() -> list[str]:
    """Return the commands of the shell blocks, continued lines joined, prompts and comments stripped."""
    text = "\n".join(readme_blocks("console", "bash", "sh", "shell")).replace("\\\n", " ")
    lines = [re.sub(r"^\$\s*", "", line).split(" #")[0].strip() for line in text.splitlines()]
    known = (*COMMANDS, "nox ", "python3 noxfile.py", "pip install", "python -m")
    return [line for line in lines if line.startswith(known)]


@pytest.mark.timeout(600)  # it is every Python example of the README
def test_the_python_of_the_readme_runs(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, code in enumerate(readme_blocks("python")):
        local = PLACEHOLDERS.sub(str(tiny_llama_dir), code)
        exec(compile(local, f"README.md, python block {number + 1}", "exec"), namespace)


@pytest.mark.timeout(600)  # a comparison starts a process for each of its cases
@pytest.mark.parametrize("command", [each for each in commands() if each.startswith(tuple(COMMANDS))])
def test_a_command_of_the_readme_runs(
    command: str,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("layerstream.cli.backend.default_model_path", lambda: tiny_llama_dir)
    program, *arguments = shlex.split(PLACEHOLDERS.sub(str(tiny_llama_dir), command))
    # a budget that is sensible for the model named may be anything to the tiny one
    arguments = [
        "min" if arguments[index - 1] == "--budget" else each for index, each in enumerate(arguments)
    ]
    assert COMMANDS[f"{program} "](arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [each for each in commands() if each.startswith(("nox ", "python3 noxfile.py"))]
)
def test_a_session_that_the_readme_names_exists(command: str) -> None:
    defined = re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    words = shlex.split(command.split(" -- ")[0])
    named = [
        word
        for word in words[words.index("noxfile.py") + 1 if "noxfile.py" in words else 1 :]
        if not word.startswith("-")
    ]
    assert named
    assert set(named) <= set(defined)


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("pip install")])
def test_what_the_readme_installs_from_here_is_here(command: str) -> None:
    local = [word.split("[")[0] for word in shlex.split(command) if "packages/" in word or "apps/" in word]
    assert [path for path in local if not (ROOT / path / "pyproject.toml").exists()] == []


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(example: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(example), str(tiny_llama_dir)],
        cwd=tmp_path,
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
