"""Try the three packages as somebody who installed their wheels has them.

Usage: `python -I packages/try_wheels.py`, with the Python of an environment that has the wheels and nothing
of this checkout. Everything runs in a temporary folder: each command, a tiny checkpoint planned and run, a
comparison of two variants, and the app, which is started, asked for its page and stopped. Prints each step
with its seconds; the first that fails ends the program with its output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files, version
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "layerstream" / "tests"))

from kit.tiny_llama import save_tiny_llama

from assemble import SOURCES

SCRIPTS = Path(sys.executable).parent
STOP_WITHIN_S = 120
MODULES = {name: source.name for name, source in SOURCES.items()}


def main() -> None:
    """Run every step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(save_tiny_llama(folder / "model"))
        check_files(folder)
        check_commands(folder)
        try_layerstream(folder, model)
        try_compare(folder, model)
        try_space(folder, model)


def check_files(folder: Path) -> None:
    """Check that the wheels hold every file of their package, the license and the app's documents."""
    for name, source in SOURCES.items():
        held = {path.as_posix() for path in files(name) or ()}
        wanted = {
            path.relative_to(source.parent).as_posix()
            for path in source.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        missing = sorted(wanted - held)
        assert not missing, f"the wheel of {name} lacks {missing}"
        assert any(path.endswith("licenses/LICENSE") for path in held), f"{name}: no LICENSE"
    program = (
        "from layerstream_space.documents import NAMES, read_documents as read; "
        "print(len(read()) == len(NAMES))"
    )
    assert run(folder, sys.executable, "-I", "-c", program) == "True\n", "the app lacks documents"


def check_commands(folder: Path) -> None:
    """Check that every command and module starts, and shows the version that was installed."""
    for command, module in MODULES.items():
        shown = run(folder, command, "--version")
        assert shown == f"{command} {version(command)}\n", shown
        assert run(folder, sys.executable, "-m", module, "--version") == shown
        assert "--help" in run(folder, command, "--help")


def try_layerstream(folder: Path, model: str) -> None:
    """Plan a tiny checkpoint and run it, streamed."""
    assert "budget" in run(folder, "layerstream", "plan", model, "--budget", "min")
    options = ("--budget", "min", "--max-new-tokens", "4", "--json")
    answer = json.loads(run(folder, "layerstream", "run", model, "--prompt", "The sea is", *options))
    assert answer["report"]["bytes_read"] > 0, answer


def try_compare(folder: Path, model: str) -> None:
    """Compare the streamed with the resident checkpoint."""
    options = (
        "--prompt",
        "The sea is",
        "--max-new-tokens",
        "4",
        "--no-noise-floor",
        "--out",
        "results",
        "--json",
    )
    shown = run(
        folder, "layerstream-compare", "run", "--model", model, "--variants", "streamed,resident", *options
    )
    streamed, resident = (json.loads(line) for line in shown.splitlines()[:2])
    assert streamed["status"] == resident["status"] == "ok", shown
    assert streamed["token_ids"] == resident["token_ids"], shown
    assert (folder / "results" / "report.html").exists()


def try_space(folder: Path, model: str) -> None:
    """Start the app, fetch its page, and stop it as Ctrl-C does."""
    begun_s = time.perf_counter()
    command = [str(SCRIPTS / "layerstream-space"), "--model", model]
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True
    ) as app:
        try:
            assert app.stdout is not None
            line = next((line for line in app.stdout if line.startswith("layerstream is open at ")), "")
            assert line, f"layerstream-space ended with status {app.wait()} before it served its page"
            with urlopen(line.split()[-1], timeout=STOP_WITHIN_S) as page:
                assert page.status == 200 and b"layerstream" in page.read()
            app.send_signal(signal.SIGINT)
            app.communicate(timeout=STOP_WITHIN_S)
        finally:
            app.kill()
    tell("layerstream-space, its page, Ctrl-C", begun_s)


def run(folder: Path, program: str, *arguments: str) -> str:
    """Return what a command of the environment writes to stdout.

    Raises:
        SystemExit: it failed; with what it wrote.
    """
    begun_s = time.perf_counter()
    command = [str(SCRIPTS / program) if program in MODULES else program, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    told = " ".join([Path(program).name, *arguments])
    if done.returncode:
        sys.exit(f"{told}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    tell(told, begun_s)
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables of a user who has neither this checkout nor a network."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def tell(step: str, begun_s: float) -> None:
    """Print a step and its seconds."""
    sys.stdout.write(f"{time.perf_counter() - begun_s:6.1f} s  {step[:100]}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
