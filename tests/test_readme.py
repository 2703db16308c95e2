"""What the READMEs show is executed.

Their `python` blocks run in their order in one namespace; their `layerstream ...` commands run too; of `nox`
and `pip` commands it is checked that what they name is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import layerstream

sys.path.insert(0, str(Path(__file__).resolve().parent))

from document_blocks import (
    ROOT,
    blocks_of,
    commands_of,
    defined_sessions,
    is_program,
    missing_folders,
    run_command,
    run_python,
    sessions_of,
    with_tiny_model,
)

DOCUMENTS = (ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")))
COMMANDS = commands_of(*DOCUMENTS)


@pytest.mark.timeout(600)  # it is every Python example of the READMEs
def test_the_python_of_the_readme_runs(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layerstream, "default_model_path", lambda: tiny_llama_dir, raising=False)
    namespace: dict[str, Any] = {"__name__": "readme"}
    blocks = [block for path in DOCUMENTS for block in blocks_of(path)]
    shown = [block.code for block in blocks if block.language == "python" and block.is_executed]
    for number, code in enumerate(shown, 1):
        run_python(with_tiny_model(code, tiny_llama_dir), namespace, f"README.md, python block {number}")


@pytest.mark.timeout(600)  # a comparison starts a process for each of its cases
@pytest.mark.parametrize("command", [each for each in COMMANDS if is_program(each)])
def test_a_command_of_the_readme_runs(
    command: str, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("layerstream.cli.backend.default_model_path", lambda on_fetch: tiny_llama_dir)
    run_command(with_tiny_model(command, tiny_llama_dir))


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.startswith(("nox ", "python3 noxfile.py"))]
)
def test_a_session_that_the_readme_names_exists(command: str) -> None:
    named = sessions_of(command)
    assert named
    assert set(named) <= set(defined_sessions())


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("pip install")])
def test_what_the_readme_installs_from_here_is_here(command: str) -> None:
    assert missing_folders(command) == []


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
