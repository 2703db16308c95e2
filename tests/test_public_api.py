"""What is public is documented, and what is documented is there."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import layerstream

PUBLIC = sorted(getattr(layerstream, "__all__", ()))


def test_all_is_sorted_out_and_without_doubles() -> None:
    assert PUBLIC, "layerstream.__all__ is the public API"
    assert len(set(PUBLIC)) == len(PUBLIC)
    assert not [name for name in PUBLIC if name.startswith("_") and name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_exists_and_says_what_one_gets(name: str) -> None:
    member = getattr(layerstream, name)
    if inspect.isclass(member) or inspect.isroutine(member):
        first_line = (inspect.getdoc(member) or "").splitlines()[:1]
        assert first_line and len(first_line[0]) > 10, f"layerstream.{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(getattr(layerstream, name, None))])
def test_every_public_method_is_documented(name: str) -> None:
    member = getattr(layerstream, name)
    own = [(key, value) for key, value in vars(member).items() if not key.startswith("_")]
    undocumented = [
        key for key, value in own if (inspect.isroutine(value) or isinstance(value, property)) and not inspect.getdoc(value)
    ]
    assert not undocumented, f"layerstream.{name}: {', '.join(undocumented)}"


def test_importing_it_says_nothing_and_starts_no_thread() -> None:
    program = "import threading, layerstream; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert done.stderr == ""
