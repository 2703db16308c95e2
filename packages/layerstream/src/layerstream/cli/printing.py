"""Print for people (notes, tables) and for programs (JSON).

Answers go to stdout. Everything else (plans, reports, errors) goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..spec.load_progress import LoadProgress
from . import lazy_rich


def out_console() -> lazy_rich.Console:
    """Return a console on the current stdout, which tests and shells replace."""
    return lazy_rich.Console(file=sys.stdout, highlight=False, soft_wrap=True)


def err_console() -> lazy_rich.Console:
    """Return a console on the current stderr."""
    return lazy_rich.Console(file=sys.stderr, highlight=False, soft_wrap=True)


@contextmanager
def loading_status() -> Iterator[Callable[[LoadProgress], None]]:
    """Show on a terminal that a model is loaded; give the function that says how far it is."""
    with err_console().status("planning and loading") as status:
        yield lambda progress: status.update(f"loading: {progress.explain()}")


def note(text: str) -> None:
    """Print `text` to stderr, dimmed on a terminal."""
    err_console().print(text, style="dim", markup=False)


def print_json(value: Any) -> None:
    """Print a JSON-ready `value` to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
