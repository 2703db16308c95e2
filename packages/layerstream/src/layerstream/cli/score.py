"""`layerstream score`: score the suffixes of many prefixes in shared sweeps; resumes after any interruption.

Results go to a file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..spec.options import LoadOptions
from . import backend
from .batch import MaxRows, Model, Quiet, Results
from .options import model_or_default, takes_load_options
from .row_job import RowKind, run_job
from .score_rows import ScoreRows

Rows = Annotated[
    Path,
    typer.Argument(help='JSON lines, one row each: {"id": ..., "prefix": "...", "suffixes": ["...", ...]}.'),
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
    options: LoadOptions,
    quiet: Quiet = False,
) -> None:
    """Score the suffixes of many prefixes and report the best of each. Run it again to continue."""
    model = model_or_default(model)
    run_job(
        rows,
        results,
        model=model,
        options=options,
        make_kinds=partial(_make_kinds, model, options, head, max_rows),
        max_rows=max_rows,
        quiet=quiet,
    )


def _make_kinds(model: str, options: LoadOptions, head: Path | None, max_rows: int | None) -> list[RowKind]:
    tokenizer, config = backend.load_text_parts(model, options)
    return [ScoreRows(tokenizer, config, head=head, max_rows=max_rows)]
