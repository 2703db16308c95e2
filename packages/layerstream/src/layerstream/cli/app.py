"""The `layerstream` command: its subcommands, and its exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import LayerstreamError
from .batch import batch_command
from .chat import chat_command
from .convert import convert_command
from .estimate import estimate_command
from .interrupts import STATUS, Interrupts
from .plan import plan_command
from .probe import probe_command
from .run import run_command
from .score import score_command
from .serve import serve_command
from .trace import trace_command

SHORT_SPINS = ("GOMP_SPINCOUNT", "10000")
"""How long torch's threads on Linux stay awake between two operations; they read this when torch is imported.

Without it they stay awake for milliseconds, as long as a unit is waited for, at the cost of the threads that
read. Source: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
"""

app = typer.Typer(
    name="layerstream",
    help=(
        "Run language models that do not fit in memory, exactly. "
        "Decoder blocks are streamed from disk under transformers' own forward."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_command)
app.command("chat")(chat_command)
app.command("batch")(batch_command)
app.command("score")(score_command)
app.command("serve")(serve_command)
app.command("plan")(plan_command)
app.command("estimate")(estimate_command)
app.command("convert")(convert_command)
app.command("probe")(probe_command)
app.command("trace")(trace_command)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        sys.stdout.write(f"layerstream {__version__}\n")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
]


@app.callback()
def _root(show_version: Version = False) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows the program's name; by default the process's own.

    Returns:
        0 on success, 1 if rows of a job have errors, 2 after a LayerstreamError or a wrong argument, 130
        after Ctrl-C.
    """
    os.environ.setdefault(*SHORT_SPINS)
    if arguments is None:  # this process runs nothing else
        warnings.showwarning = _show_warning
    with Interrupts(owns_process=arguments is None) as interrupts:
        status = _status_of(arguments)
    if status == STATUS:
        interrupts.report()
    return status


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning without the line of code that gave it."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def _status_of(arguments: Sequence[str] | None) -> int:
    try:
        app(arguments, prog_name="layerstream")
    except LayerstreamError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return STATUS
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    return 0
