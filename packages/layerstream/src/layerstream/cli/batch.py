"""`layerstream batch`: answer the rows of a JSON-lines file in shared sweeps; resumes after any interruption.

Results go to a file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PlanError
from ..spec.options import LoadOptions
from . import backend, parts
from .options import model_or_default, takes_load_options

if TYPE_CHECKING:
    from .prompt_rows import PromptDefaults
    from .result_file import Resume
    from .row_job import RowKind

_RESUMING = "Continuing existing results"

Rows = Annotated[
    Path,
    typer.Argument(
        help='JSON lines, one row each: {"id": ..., "prompt": "...", "max_new_tokens": ...}, '
        "a row for 'layerstream score', or a row of an OpenAI batch."
    ),
]
Results = Annotated[
    Path,
    typer.Argument(
        help="JSON lines: a header that says what made the results, then one result each. If the file exists "
        "and the same model and settings made it, only missing results are added."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A checkpoint's directory, or its id on the Hugging Face Hub. Without one, a small chat model "
        "is downloaded.",
        show_default=False,
    ),
]
NewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        "-n",
        help="The maximum number of new tokens, unless a row has its own.",
        metavar="N",
        min=1,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature, unless a row has its own. Without one, the likeliest token is "
        "taken.",
        metavar="X",
        min=0.01,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Make sampling repeatable.", metavar="N", min=0, show_default=False)
]
Chat = Annotated[bool, typer.Option("--chat", help="Put every prompt into the checkpoint's chat template.")]
Packed = Annotated[
    bool,
    typer.Option(
        "--packed/--no-packed",
        help="Let similar rows share a padded tensor. With --no-packed, each row gets what it would get "
        "alone, bit for bit; much slower.",
    ),
]
MaxRows = Annotated[
    int | None,
    typer.Option(
        help="At most this many rows share a sweep.", metavar="N", min=1, show_default="as memory allows"
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Start afresh; the old results are kept as RESULTS.1 (or .2, ...). Not for a script that is run "
        "again after a kill: it would start over each time.",
        rich_help_panel=_RESUMING,
    ),
]
ResumeAnyway = Annotated[
    bool,
    typer.Option(
        "--resume-anyway",
        help="Go on although another model, other settings or versions made the results that are there. A "
        "line in the file marks where.",
        rich_help_panel=_RESUMING,
    ),
]
RetryErrors = Annotated[
    bool,
    typer.Option(
        "--retry-errors",
        help="Run rows again whose result is an error. Rows whose text has changed run again anyway.",
        rich_help_panel=_RESUMING,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no plan, progress or report.")]


@takes_load_options(several_devices=True, draft=True)
def batch_command(
    rows: Rows,
    results: Results,
    model: Model = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = None,
    seed: Seed = None,
    chat: Chat = False,
    packed: Packed = True,
    max_rows: MaxRows = None,
    *,
    restart: Restart = False,
    resume_anyway: ResumeAnyway = False,
    retry_errors: RetryErrors = False,
    options: LoadOptions,
    quiet: Quiet = False,
) -> None:
    """Answer the prompts in a file, many at once, so that they share each reading of the weights.

    Run it again after an interruption, and it continues.
    """
    defaults = parts.PromptDefaults(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        packed=packed,
        max_rows=max_rows,
    )
    model = model_or_default(model, options)
    parts.run_job(
        parts.RowJob(
            command="batch",
            rows_path=rows,
            results_path=results,
            model=model,
            options=options,
            settings=defaults.settings,
            make_kinds=partial(_make_kinds, model, defaults),
            resume=resume_of(restart=restart, anyway=resume_anyway, retry_errors=retry_errors),
            max_rows=max_rows,
            seed=seed,
            quiet=quiet,
        )
    )


def resume_of(*, restart: bool, anyway: bool, retry_errors: bool) -> Resume:
    """Return the options as one value.

    Raises:
        PlanError: they contradict each other.
    """
    if restart and (anyway or retry_errors):
        other = "--resume-anyway" if anyway else "--retry-errors"
        raise PlanError(f"--restart starts afresh and {other} goes on: give one of them")
    return parts.Resume(restart=restart, anyway=anyway, retry_errors=retry_errors)


def _make_kinds(model: str, defaults: PromptDefaults, options: LoadOptions) -> list[RowKind]:
    tokenizer, config = backend.load_text_parts(model, options)
    vocab_size = int(config.vocab_size)
    # where a model lies on this machine is nothing for an answer
    name = Path(model).name if Path(model).is_dir() else model
    return [
        parts.PromptRows(tokenizer, defaults, vocab_size),
        parts.ScoreRows(tokenizer, config, max_rows=defaults.max_rows),
        parts.OpenAIRows(tokenizer, defaults, vocab_size, model=name),
    ]
