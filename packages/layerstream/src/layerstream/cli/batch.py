"""`layerstream batch`: rows of a JSON-lines file answered in shared sweeps, resumable at any instant.

Room: surfaces. Results go to the file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from transformers import AutoConfig

from .. import BatchProgress, BudgetTooSmallError, StreamedModel, Workload, load
from ..checkpoint.hub import resolve_model
from ..jobs import ResultFile, read_rows
from ..tokenizer import load_tokenizer
from ..units import format_seconds
from .batch_rows import PromptDefaults, PromptRows, RowKind, sort_rows
from .options import Attention, Budget, Device, Dtype, Revision, TrustRemoteCode, model_or_default
from .printing import err_console, note
from .terminal import StatusLine

_MOST_ROWS = 64
_LINE_EVERY_S = 10.0

Rows = Annotated[Path, typer.Argument(help='JSON lines: {"id": ..., "prompt": "...", "max_new_tokens": ...}, one row each.')]
Results = Annotated[Path, typer.Argument(help="JSON lines, one result a row as it comes; started again, the rest is done.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A checkpoint's directory or Hub id.", show_default=False)]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens at most, where a row does not say.", min=1)]
Temperature = Annotated[float | None, typer.Option(help="Sample, where a row does not say.", min=0.01, show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", min=0, show_default=False)]
Chat = Annotated[bool, typer.Option("--chat", help="Put every prompt into the checkpoint's chat template.")]
Isolate = Annotated[bool, typer.Option("--isolate", help="Give each row what it would get alone, bit for bit; much slower.")]
Batches = Annotated[int | None, typer.Option(help="Go through the rows in so many batches.", min=1, show_default="by memory")]
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
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Answer many prompts, reading the weights once for all of them. Killed at any instant and started again, it goes on."""
    asked = read_rows(rows)
    with ResultFile(results, asked) as file:
        left = [row for row in asked if row.number not in file.done]
        if left:
            name = model_or_default(model)
            defaults = PromptDefaults(
                max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, chat=chat, isolate=isolate, batches=batches
            )
            kinds = _kinds(name, defaults, revision, trust_remote_code)
            if sort_rows(left, kinds, file.write):
                opener = partial(
                    load,
                    name,
                    budget=budget,
                    device=device,
                    dtype=dtype,
                    attn_implementation=attn_implementation,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                )
                with _load(opener, kinds) as streamed:
                    _answer(streamed, kinds, file, _Told(len(asked), len(asked) - len(left), shown=not quiet), seed)
        if not quiet:
            note(f"{len(file.done)} of {len(asked)} rows have their result, {file.num_errors} of them an error: {results}")
        if file.num_errors:
            raise typer.Exit(1)


def _kinds(name: str, defaults: PromptDefaults, revision: str | None, trust_remote_code: bool) -> list[RowKind]:
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    directory = resolve_model(name, revision=revision, weights=False)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
    return [PromptRows(tokenizer, defaults, int(config.vocab_size))]


def _load(opener: Callable[..., StreamedModel], kinds: list[RowKind]) -> StreamedModel:
    """Load with room for as many rows at once as the budget holds, 64 at most."""
    most_rows = _MOST_ROWS
    with err_console().status("planning and loading"):
        while True:
            try:
                return opener(workload=_joined(kinds, most_rows))
            except BudgetTooSmallError:
                if most_rows == 1:
                    raise
                most_rows //= 2


def _joined(kinds: list[RowKind], most_rows: int) -> Workload:
    wanted = [workload for kind in kinds if (workload := kind.workload(most_rows)) is not None]
    return Workload(
        batch_size=max(each.batch_size for each in wanted),
        prompt_tokens=max(each.prompt_tokens for each in wanted),
        new_tokens=max(each.new_tokens for each in wanted),
    )


def _answer(streamed: StreamedModel, kinds: list[RowKind], file: ResultFile, told: _Told, seed: int | None) -> None:
    if told.shown:
        note(streamed.plan.explain() + "\n")
    if seed is not None:
        torch.manual_seed(seed)
    with StatusLine(told.line, shown=told.shown):
        for kind in kinds:
            kind.run(streamed, file.write, told.hear)
    if told.shown:
        note(streamed.report().explain())


class _Told:
    """Where the batch stands, as a line for the terminal, or now and then for a log."""

    def __init__(self, num_rows: int, num_before: int, *, shown: bool) -> None:
        self.shown = shown
        self._num_rows, self._num_before = num_rows, num_before
        self._latest: BatchProgress | None = None
        self._last_line_s = perf_counter()

    def hear(self, progress: BatchProgress) -> None:
        self._latest = progress
        if self.shown and not sys.stderr.isatty() and perf_counter() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = perf_counter()
            note(self.line())

    def line(self) -> str:
        state = self._latest
        if state is None:
            return f"{self._num_before}/{self._num_rows} rows · waiting for the first weights"
        left = "" if state.eta_s is None else f" · about {format_seconds(state.eta_s)} left at most"
        done = f"{self._num_before + state.done}/{self._num_rows} rows"
        return f"{done} · {state.tokens}/{state.most_tokens} tokens · sweep {state.sweeps}{left}"
