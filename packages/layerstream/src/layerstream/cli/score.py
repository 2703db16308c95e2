"""`layerstream score`: score the suffixes of many prefixes in shared sweeps; resumes after any interruption.

Results go to a file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import JobError
from ..spec.options import LoadOptions
from . import backend, parts
from .batch import MaxRows, Model, Quiet, Restart, Results, ResumeAnyway, RetryErrors, resume_of
from .options import model_or_default, takes_load_options
from .row_options import Config, PrefixColumn, Split, SuffixesColumn

if TYPE_CHECKING:
    from .row_job import RowKind

Rows = Annotated[
    str,
    typer.Argument(
        help='JSON lines, one row each: {"id": ..., "prefix": "...", "suffixes": ["...", ...]}. Or a parquet '
        "file; or a Hugging Face data set: its id, owner/name or owner/name@revision, or a folder."
    ),
]
HeadFile = Annotated[
    Path | None,
    typer.Option(
        "--head",
        metavar="FILE",
        help="Score by the outputs of this head: a safetensors file with a weight (outputs, hidden size).",
        show_default=False,
    ),
]


@takes_load_options(several_devices=True)
def score_command(
    rows: Rows,
    results: Results,
    model: Model = None,
    head: HeadFile = None,
    max_rows: MaxRows = None,
    *,
    restart: Restart = False,
    resume_anyway: ResumeAnyway = False,
    retry_errors: RetryErrors = False,
    options: LoadOptions,
    config: Config = None,
    split: Split = None,
    prefix_column: PrefixColumn = None,
    suffixes_column: SuffixesColumn = None,
    quiet: Quiet = False,
) -> None:
    """Score the endings of many texts by their probability, and report the best ending of each.

    Run it again after an interruption, and it continues.
    """
    model = model_or_default(model, options)
    parts.run_job(
        parts.RowJob(
            command="score",
            source=parts.RowSource(
                text=rows,
                config=config,
                split=split,
                columns=parts.Columns(prefix=prefix_column, suffixes=suffixes_column),
            ),
            results_path=results,
            model=model,
            options=options,
            settings=partial(_settings, head),
            make_kinds=partial(_make_kinds, model, head, max_rows),
            resume=resume_of(restart=restart, anyway=resume_anyway, retry_errors=retry_errors),
            max_rows=max_rows,
            quiet=quiet,
        )
    )


def _settings(head: Path | None) -> dict[str, Any]:
    """Return what can change a score: the head's contents."""
    if head is None:
        return {"head": None}
    parts.refuse_special_file(head, f"cannot read the head {head}", "give a safetensors file")
    try:
        return {"head": f"{head.name} ({backend.digest_file(head)})"}
    except OSError as error:
        raise JobError(f"cannot read the head {head}: {error.strerror or error}") from error


def _make_kinds(model: str, head: Path | None, max_rows: int | None, options: LoadOptions) -> list[RowKind]:
    tokenizer, config = backend.load_text_parts(model, options)
    return [parts.ScoreRows(tokenizer, config, head=head, max_rows=max_rows)]
