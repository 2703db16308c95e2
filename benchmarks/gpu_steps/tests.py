"""Step `tests`: the tests that need an accelerator; with the fake device, the ones that are about it.

They run under a small configuration of their own: a rented machine may have pytest, but not its plugins.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .child import FAKE, Case, Child, NotHereError
from .lines import Found

ROOT = Path(__file__).resolve().parents[2]
FAKE_DEVICE_TESTS = ROOT / "packages/layerstream/tests/contract/test_async_device.py"
MARK = "pytest.mark.gpu"


def cases(child: Child) -> Iterator[Case]:
    """Yield the one run of pytest; `pytest_lines` appends a line for each test."""
    yield "pytest", 5.0, lambda: run_pytest(child)


def run_pytest(child: Child) -> Found:
    """Run the tests in a process below this one."""
    if importlib.util.find_spec("pytest") is None:
        raise NotHereError("pytest is not installed")
    if child.device == FAKE:
        chosen = [str(FAKE_DEVICE_TESTS)]
    elif child.is_accelerator:
        chosen = ["-m", "gpu", *map(str, marked_files())]
    else:
        raise NotHereError("there is no accelerator to test")
    settings = child.work / "pytest.ini"
    settings.write_text("[pytest]\nmarkers =\n    gpu: needs an accelerator\n    slow: takes long\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(settings), f"--rootdir={ROOT}"]
    options = ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "gpu_steps.pytest_lines"]
    where = {"GPU_STEPS_RESULTS": str(child.results), "GPU_STEPS_STEP": child.step}
    done = subprocess.run(
        [*command, *options, *chosen],
        env={**os.environ, **where},
        stdout=sys.stderr,
        check=False,
    )
    # a failed test has a row of its own
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with status {done.returncode}: see the step's error output")
    return Found(figures={"status": done.returncode})


def marked_files() -> list[Path]:
    """Return the test files with a test for an accelerator."""
    folders = (ROOT / "packages").glob("*/tests")
    files = (path for folder in folders for path in sorted(folder.rglob("test_*.py")))
    return [path for path in files if MARK in path.read_text(encoding="utf-8")]
