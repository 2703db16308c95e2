"""Print for people (notes, tables) and for programs (JSON).

Answers go to stdout. Everything else (plans, reports, errors) goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..spec.fetch import FetchProgress
from ..spec.load_progress import LoadProgress
from . import lazy_rich
from .wrapping import fit_lines

LOADING_TOKENIZER = "loading torch and transformers, and the tokenizer"


def out_console() -> lazy_rich.Console:
    """Return a console on the current stdout, which tests and shells replace."""
    return lazy_rich.Console(file=sys.stdout, highlight=False, soft_wrap=True)


def err_console() -> lazy_rich.Console:
    """Return a console on the current stderr."""
    return lazy_rich.Console(file=sys.stderr, highlight=False, soft_wrap=True)


@contextmanager
def working(text: str, *, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is going on, and since when; give the function that changes the text."""
    console = err_console()
    progress = lazy_rich.Progress(
        lazy_rich.SpinnerColumn(),
        lazy_rich.TextColumn("{task.description}", markup=False),
        lazy_rich.TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # what goes to stdout would end up on stderr
        disable=not (shown and console.is_terminal and console.is_interactive),
    )
    with progress:
        task = progress.add_task(text, total=None)
        yield lambda text: progress.update(task, description=text)


@contextmanager
def loading_status(*, shown: bool = True) -> Iterator[Callable[[LoadProgress | FetchProgress], None]]:
    """Show on a terminal that a model is copied and loaded; give the function that says how far it is."""
    with working("planning and loading the model", shown=shown) as say:

        def tell(progress: LoadProgress | FetchProgress) -> None:
            what = "copying" if isinstance(progress, FetchProgress) else "loading what stays in memory:"
            say(f"{what} {progress.explain()}")

        yield tell


def note(text: str) -> None:
    """Print `text` to stderr, dimmed on a terminal and broken between words there."""
    console = err_console()
    console.print(_fitted(text, console), style="dim", markup=False)


def show(text: str) -> None:
    """Print `text`, the command's result, to stdout; on a terminal, broken between words."""
    console = out_console()
    console.print(_fitted(text, console), markup=False)


def _fitted(text: str, console: lazy_rich.Console) -> str:
    return fit_lines(text, console.width) if console.is_terminal else text


def print_json(value: Any) -> None:
    """Print a JSON-ready `value` to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
