"""The command `layerstream-compare`: options, terminal output and exit status.

Everything else is done by the public functions. An error is one line on stderr and exit status 2, Ctrl-C is
130, and 1 means that at least one case failed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .errors import CompareError, ExperimentError
from .experiment import Experiment, run
from .live import follow
from .measurement import Measurement
from .protocol import one_line
from .reports.files import write_reports
from .reports.metrics import rows_of
from .reports.tables import terminal_notes, terminal_table
from .results import read_results
from .runners.in_process import run_in_process
from .runners.isolate import run_isolated
from .variants.registry import list_variants

app = typer.Typer(
    name="layerstream-compare",
    help="Run one prompt through streamed, resident and quantized variants and every attention kernel; "
    "each case is measured in its own process.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULT_VARIANTS = "streamed,resident,bnb-int8,bnb-nf4"
_LENGTH = re.compile(r"([0-9]+)(k?)", re.IGNORECASE)


@app.command("run")
def run_command(  # noqa: PLR0913  each option is an argument
    model: Annotated[str, typer.Option(help="Directory or Hub id of the checkpoint.")],
    prompt: Annotated[str, typer.Option(help="The prompt.")] = "",
    prompt_file: Annotated[
        Path | None, typer.Option(help="Text file with the prompt, instead of --prompt.")
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Weights variants, separated by commas, or `all`.")
    ] = _DEFAULT_VARIANTS,
    attention: Annotated[
        str, typer.Option(help="Attention variants, separated by commas, or `all`.")
    ] = "default",
    lengths: Annotated[
        str, typer.Option(help="Prompt lengths in tokens, such as 512,1k,4k; 0 leaves the prompt unchanged.")
    ] = "0",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate, greedily.")] = 60,
    budget: Annotated[
        str,
        typer.Option(
            help="Memory for the streamed variant, on an accelerator its device memory: min, "
            "or a size such as 6GiB."
        ),
    ] = "min",
    host_budget: Annotated[
        str,
        typer.Option(
            help="Host memory for the streamed variant on an accelerator: min, auto, or a size. "
            "Weights that fit stay there and are not read from disk."
        ),
    ] = "min",
    dtype: Annotated[str, typer.Option(help="Unquantized dtype; auto keeps the checkpoint's.")] = "auto",
    device: Annotated[
        str, typer.Option(help="torch device; auto is the accelerator if there is one.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(help="Measure each case this many times, interleaved.")] = 1,
    threads: Annotated[int, typer.Option(help="torch threads; 0 keeps torch's default.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds after which a case is stopped.")] = 1800.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results and reports; a later run of the same experiment resumes there."
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Start afresh in the folder; the results there are kept as results.jsonl.1 (or .2, ...).",
        ),
    ] = False,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process",
            help="Run in this process, on hosts that forbid child processes; memory is less exact.",
        ),
    ] = False,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Do not apply the chat template.")] = False,
    no_quality: Annotated[
        bool, typer.Option("--no-quality", help="Skip agreement with the reference.")
    ] = False,
    no_noise_floor: Annotated[
        bool,
        typer.Option("--no-noise-floor", help="Skip the original weights with a second attention kernel."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record per case instead of the table.")
    ] = False,
) -> None:
    """Run one prompt through every combination and show what each one costs and changes."""
    if restart and out is None:
        raise ExperimentError("--restart starts afresh in a folder: give it with --out")
    experiment = Experiment(
        model=model,
        prompt=_prompt(prompt, prompt_file),
        variants=_names(variants, "weights"),
        attention=_names(attention, "attention"),
        lengths=tuple(parse_length(text) for text in lengths.split(",")),
        max_new_tokens=max_new_tokens,
        budget=budget,
        host_budget=host_budget,
        dtype=dtype,
        device=device,
        rounds=rounds,
        threads=threads,
        time_limit_s=time_limit,
        chat=not no_chat,
        quality=not no_quality,
        noise_floor=not no_noise_floor,
        out=out,
    )
    runner = run_in_process if in_process else run_isolated
    with closing(run(experiment, runner=runner, restart=restart)) as events:
        measurements = follow(events, num_cases=len(experiment.cases()), console=Console(stderr=True))
    _show(measurements, as_json=as_json)
    if out is not None:
        _write(read_results(out), out)
    if any(measurement.status == "failed" for measurement in measurements):
        raise typer.Exit(1)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="The folder that `run --out` wrote.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record per case instead of the table.")
    ] = False,
) -> None:
    """Show the table of finished results and rewrite their reports."""
    measurements = read_results(folder)
    _show(measurements, as_json=as_json)
    _write(measurements, folder)


@app.command("variants")
def variants_command() -> None:
    """List every variant and whether this machine can run it."""
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "available", "description or reason"):
        table.add_column(heading, overflow="fold")
    for variant in list_variants():
        reason = variant.availability()
        table.add_row(
            variant.kind,
            variant.name,
            "yes" if reason is None else "no",
            variant.title if reason is None else reason,
        )
    Console().print(table, markup=False)


def _prompt(text: str, file: Path | None) -> str:
    if bool(text) == (file is not None):
        raise ExperimentError("give either --prompt or --prompt-file")
    if file is None:
        return text
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _names(text: str, kind: str) -> tuple[str, ...]:
    if text.strip() == "all":
        # variants that cannot run here appear in the results with the reason
        return tuple(variant.name for variant in list_variants(kind))
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_length(text: str) -> int:
    """Return the number of tokens in a prompt length such as `"512"` or `"4k"` (4096).

    Raises:
        ExperimentError: the text is neither a number nor a number followed by k.
    """
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise ExperimentError(
            f"{text!r} is not a prompt length: write a number of tokens such as 512, or 4k for 4096"
        )
    return int(match[1]) * (1024 if match[2] else 1)


def _show(measurements: Sequence[Measurement], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.writelines(f"{measurement.to_json()}\n" for measurement in measurements)
        return
    console = Console()
    if not console.is_terminal:
        # a file or a pipe has no width to fit
        console = Console(width=200)
    rows = rows_of(measurements)
    console.print(terminal_table(rows, width=console.width), *terminal_notes(rows), sep="\n")


def _write(measurements: Sequence[Measurement], folder: Path) -> None:
    paths = write_reports(measurements, folder)
    sys.stderr.write(f"wrote {', '.join(map(str, paths))}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the arguments after the program's name; `sys.argv` by default.

    Returns:
        0 on success, 1 if a case failed, 2 for invalid arguments, an invalid experiment or a file error,
        130 after Ctrl-C.
    """
    try:
        app(arguments, prog_name="layerstream-compare")
    except (CompareError, OSError) as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 0
