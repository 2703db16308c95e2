"""`layerstream score`: requests of the multiple-choice form in shared sweeps, resumable at any instant.

Room: surfaces. Results go to the file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import load
from ..engine.tokenizer import load_tokenizer
from .batch import Batches, Model, Quiet, Results
from .batch_rows import RowKind
from .options import (
    Attention,
    Budget,
    Devices,
    Dtype,
    Revision,
    TrustRemoteCode,
    model_or_default,
    named_devices,
)
from .row_job import carry_out
from .score_rows import ScoreRows, load_config

Rows = Annotated[
    Path,
    typer.Argument(help='JSON lines: {"id": ..., "prefix": "...", "suffixes": ["...", ...]}, one row each.'),
]
HeadFile = Annotated[
    Path | None,
    typer.Option(
        "--head",
        help="A safetensors file with a weight (outputs, hidden size): its outputs score.",
        show_default=False,
    ),
]


def score_command(
    rows: Rows,
    results: Results,
    model: Model = None,
    head: HeadFile = None,
    batches: Batches = None,
    budget: Budget = "auto",
    device: Devices = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Score the suffixes of many prefixes and tell the best of each. Killed at any instant and started again, it goes on."""
    name = model_or_default(model)

    def kinds() -> list[RowKind]:
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
        config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
        return [ScoreRows(tokenizer, config, head=head, batches=batches)]

    opener = partial(
        load,
        name,
        budget=budget,
        **named_devices(device),
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    carry_out(rows, results, kinds=kinds, opener=opener, quiet=quiet)
