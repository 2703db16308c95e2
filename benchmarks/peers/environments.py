"""Make an environment for each peer whose packages do not go together with layerstream's."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER_VARIABLE = "LAYERSTREAM_PEERS"
LONGEST_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to make one environment.

    Attributes:
        installs: the arguments of each call of `pip install`.
        variables: environment variables for them.
        check: a statement that fails if the peer does not work here.
    """

    installs: tuple[tuple[str, ...], ...]
    check: str
    variables: dict[str, str] = field(default_factory=dict)


TRANSFORMERS = ("transformers==4.57.6", "accelerate==1.15.0", "safetensors", "numpy", "psutil")
"""oLLM fails on transformers 5, and AirLLM runs more families on this version."""

RECIPES = {
    "ollm": Recipe(
        # its requirements ask for CUDA packages, which it does without
        installs=(("torch", *TRANSFORMERS, "peft==0.21.2", "requests"), ("--no-deps", "ollm==1.0.3")),
        check="import ollm",
    ),
    "airllm": Recipe(installs=(("torch", *TRANSFORMERS, "airllm==4.0.0"),), check="import airllm"),
    "llama-cpp": Recipe(
        # from source, for the instructions of this processor; neither image models nor programs
        installs=(("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"),),
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF"},
        check="import llama_cpp; llama_cpp.LLAMA_LOAD_MODE_DIRECT_IO",
    ),
}


def folder() -> Path:
    """Return where the environments are: `$LAYERSTREAM_PEERS`, or build/peers in the repository."""
    return Path(os.environ.get(FOLDER_VARIABLE) or ROOT / "build" / "peers")


def find(name: str) -> Path | str:
    """Return the Python of an environment that was made before, or why there is none."""
    python = folder() / name / "bin" / "python"
    if not _stamp(name).exists():
        return "not installed here; `nox -s bench-peers` installs it"
    return python


def make(name: str) -> Path | str:
    """Return the Python of an environment, made first where it is missing, or why it cannot be made."""
    if _stamp(name).exists():
        return find(name)
    print(f"installing {name} into {folder() / name}", flush=True)
    recipe = RECIPES[name]
    python = folder() / name / "bin" / "python"
    variables = {**os.environ, **recipe.variables}
    # a parent's packages are not this environment's
    variables.pop("PYTHONPATH", None)
    if not python.exists():
        venv.create(folder() / name, with_pip=True)
    torch = _pinned("torch")
    commands = [
        [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            *(torch if each == "torch" else each for each in packages),
        ]
        for packages in recipe.installs
    ]
    for command in [*commands, [str(python), "-c", recipe.check]]:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"cannot be installed here: {_reason(done.stderr)}"
    _stamp(name).touch()
    return python


def _pinned(package: str) -> str:
    """Return the requirement with which layerstream itself is tested."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def _stamp(name: str) -> Path:
    """Return the file whose presence means that this very recipe was carried out."""
    recipe = RECIPES[name]
    told = repr((sys.version_info[:2], recipe.installs, recipe.variables, recipe.check))
    return folder() / name / f"installed-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _reason(text: str) -> str:
    """Return the last line that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it says nothing"])[-1][:LONGEST_REASON]


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """Return the versions of those packages that an environment has, in one line."""
    code = (
        "import sys; from importlib.metadata import distributions as d; "
        "found = {each.name.lower().replace('-', '_'): each.version for each in d()}; "
        "print(', '.join(f'{name} {found[name]}' for name in sys.argv[1:] if name in found))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", code, *packages], capture_output=True, text=True, check=False, env=environment
    )
    return done.stdout.strip()
