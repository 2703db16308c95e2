"""`layerstream batch`: rows of a JSON-lines file answered in shared sweeps, resumable at any instant.

Room: surfaces. Results go to the file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import load
from ..engine.tokenizer import load_tokenizer
from .batch_rows import PromptDefaults, PromptRows, RowKind
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
    typer.Argument(
        help='JSON lines: {"id": ..., "prompt": "...", "max_new_tokens": ...}, or what "layerstream score" takes.'
    ),
]
Results = Annotated[
    Path, typer.Argument(help="JSON lines, one result a row as it comes; started again, the rest is done.")
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A checkpoint's directory or Hub id.", show_default=False)
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", help="Tokens at most, where a row does not say.", min=1)
]
Temperature = Annotated[
    float | None, typer.Option(help="Sample, where a row does not say.", min=0.01, show_default=False)
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", min=0, show_default=False)]
Chat = Annotated[bool, typer.Option("--chat", help="Put every prompt into the checkpoint's chat template.")]
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Give each row what it would get alone, bit for bit; much slower.")
]
Batches = Annotated[
    int | None, typer.Option(help="Go through the rows in so many batches.", min=1, show_default="by memory")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No plan, progress or report.")]


def batch_command(
    rows: Rows,
    results: Results,
    model: Model = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = None,
    seed: Seed = None,
    chat: Chat = False,
    isolate: Isolate = False,
    batches: Batches = None,
    budget: Budget = "auto",
    device: Devices = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Answer many prompts, reading the weights once for all of them. Killed at any instant and started again, it goes on."""
    defaults = PromptDefaults(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        isolate=isolate,
        batches=batches,
    )
    name = model_or_default(model)
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
    kinds = partial(_kinds, name, defaults, revision, trust_remote_code)
    carry_out(rows, results, kinds=kinds, opener=opener, seed=seed, quiet=quiet)


def _kinds(
    name: str, defaults: PromptDefaults, revision: str | None, trust_remote_code: bool
) -> list[RowKind]:
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    return [
        PromptRows(tokenizer, defaults, int(config.vocab_size)),
        ScoreRows(tokenizer, config, batches=defaults.batches),
    ]
