"""The command `layerstream`.

Room: surfaces. It knows the list of commands and what becomes of errors: each of ours is one line on stderr and exit status 2,
Ctrl-C is 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils import logging as transformers_logging

from ..errors import LayerstreamError
from .batch import batch_command
from .estimate import estimate_command
from .plan import plan_command
from .probe import probe_command
from .run import run_command
from .score import score_command
from .trace import trace_command

app = typer.Typer(
    name="layerstream",
    help="Run language models that do not fit in memory, exactly: blocks are streamed from disk under transformers' own forward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_command)
app.command("batch")(batch_command)
app.command("score")(score_command)
app.command("plan")(plan_command)
app.command("estimate")(estimate_command)
app.command("probe")(probe_command)
app.command("trace")(trace_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"layerstream {version('layerstream')}\n")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
]


@app.callback()
def _before_every_command(
    show_version: Version = False,
) -> None:
    # what transformers logs here is about choices that layerstream makes for the user
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows the program's name; the process' own by default.

    Returns:
        0 when all went well, 1 when rows of a batch are errors, 2 after an error of ours or in the arguments, 130 after Ctrl-C.
    """
    try:
        app(arguments, prog_name="layerstream")
    except LayerstreamError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    return 0
