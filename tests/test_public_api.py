"""What is public is documented, and what is documented is there."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import layerstream
import layerstream_compare

PACKAGES = (layerstream, layerstream_compare)
PUBLIC = [(package, name) for package in PACKAGES for name in sorted(package.__all__)]
CLASSES = [(package, name) for package, name in PUBLIC if inspect.isclass(getattr(package, name, None))]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_out_and_without_doubles(package: ModuleType) -> None:
    public = package.__all__
    assert public, "__all__ is the public API"
    assert len(set(public)) == len(public)
    assert not [name for name in public if name.startswith("_") and name != "__version__"]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_name_exists_and_says_what_one_gets(package: ModuleType, name: str) -> None:
    member = getattr(package, name)
    if inspect.isclass(member) or inspect.isroutine(member):
        first_line = (inspect.getdoc(member) or "").splitlines()[:1]
        assert first_line and len(first_line[0]) > 10, f"{package.__name__}.{name} has no docstring"


@pytest.mark.parametrize(("package", "name"), CLASSES)
def test_every_public_method_is_documented(package: ModuleType, name: str) -> None:
    member = getattr(package, name)
    own = [(key, value) for key, value in vars(member).items() if not key.startswith("_")]
    undocumented = [
        key
        for key, value in own
        if (inspect.isroutine(value) or isinstance(value, property)) and not inspect.getdoc(value)
    ]
    assert not undocumented, f"{name}: {', '.join(undocumented)}"


def test_importing_it_says_nothing_and_starts_no_thread() -> None:
    program = "import threading, layerstream; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    # transformers imports torchao where it is installed, which is not silent
    said = [
        line
        for line in done.stderr.splitlines()
        if "torchao" not in line and "torch/utils/_pytree.py" not in line
    ]
    assert said == []
