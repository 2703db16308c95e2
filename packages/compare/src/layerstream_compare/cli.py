"""The command `layerstream-compare`.

It knows options and terminals; everything that is measured or decided is done by the public functions. Errors are one line on
stderr and exit status 2, Ctrl-C is 130, and 1 says that at least one case failed.
"""

from __future__ import annotations

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
from .reports.files import write_reports
from .reports.metrics import rows_of
from .reports.tables import terminal_notes, terminal_table
from .results import read_results
from .runners.in_process import run_in_process
from .runners.isolate import run_isolated
from .units import parse_length
from .variants.registry import list_variants

app = typer.Typer(
    name="layerstream-compare",
    help="One prompt through streamed, resident and quantized variants and every attention kernel, each measured alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULT_VARIANTS = "streamed,resident,bnb-int8,bnb-nf4"


@app.command("run")
def run_command(  # noqa: PLR0913  each option is an argument
    model: Annotated[str, typer.Option(help="Directory or Hub id of the checkpoint.")],
    prompt: Annotated[str, typer.Option(help="The prompt.")] = "",
    prompt_file: Annotated[
        Path | None, typer.Option(help="A text file with the prompt, in place of --prompt.")
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Weights variants, separated by commas; `all` for every one.")
    ] = _DEFAULT_VARIANTS,
    attention: Annotated[
        str, typer.Option(help="Attention variants, separated by commas; `all` for every one.")
    ] = "default",
    lengths: Annotated[
        str, typer.Option(help="Prompt lengths in tokens, such as 512,1k,4k; 0 is the prompt as it is.")
    ] = "0",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate, greedily.")] = 60,
    budget: Annotated[
        str, typer.Option(help="Memory for the streamed variant: min, or a size such as 6GiB.")
    ] = "min",
    dtype: Annotated[str, typer.Option(help="Unquantized dtype: auto keeps the checkpoint's.")] = "auto",
    device: Annotated[
        str, typer.Option(help="torch device; auto is the accelerator if there is one.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(help="Measure each case so often, interleaved.")] = 1,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves torch's choice.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds after which a case is ended.")] = 1800.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and reports; a later run goes on there.")
    ] = None,
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="Run in this process: weaker figures, for hosts without children."),
    ] = False,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Do not apply the chat template.")] = False,
    no_quality: Annotated[
        bool, typer.Option("--no-quality", help="Do not measure agreement with the reference.")
    ] = False,
    no_noise_floor: Annotated[
        bool,
        typer.Option(
            "--no-noise-floor", help="Do not measure the original weights with another attention kernel."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record a case in place of the table.")
    ] = False,
) -> None:
    """Run one prompt through every combination and show what each one costs and changes."""
    experiment = Experiment(
        model=model,
        prompt=_prompt(prompt, prompt_file),
        variants=_names(variants, "weights"),
        attention=_names(attention, "attention"),
        lengths=tuple(parse_length(text) for text in lengths.split(",")),
        max_new_tokens=max_new_tokens,
        budget=budget,
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
    with closing(run(experiment, runner=run_in_process if in_process else run_isolated)) as events:
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
        bool, typer.Option("--json", help="Print one JSON record a case in place of the table.")
    ] = False,
) -> None:
    """Write the reports of finished results anew, and show the table."""
    measurements = read_results(folder)
    _show(measurements, as_json=as_json)
    _write(measurements, folder)


@app.command("variants")
def variants_command() -> None:
    """List every variant, and whether this machine can run it."""
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "here", "what it is"):
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
        raise ExperimentError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from error


def _names(text: str, kind: str) -> tuple[str, ...]:
    if text.strip() == "all":
        # those that cannot run here are in the results with their reason
        return tuple(each.name for each in list_variants(kind))
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _show(measurements: Sequence[Measurement], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.writelines(f"{measurement.to_json()}\n" for measurement in measurements)
        return
    console = Console()
    if not console.is_terminal:
        # a file or a pipe has no width to fit into
        console = Console(width=200)
    rows = rows_of(measurements)
    console.print(terminal_table(rows, width=console.width), *terminal_notes(rows), sep="\n")


def _write(measurements: Sequence[Measurement], folder: Path) -> None:
    paths = write_reports(measurements, folder)
    sys.stderr.write(f"written: {', '.join(map(str, paths))}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows the program's name; the process' own by default.

    Returns:
        0 when all went well, 1 when a case failed, 2 after an error of ours, in the arguments or with files, 130 after Ctrl-C.
    """
    try:
        app(arguments, prog_name="layerstream-compare")
    except (CompareError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    return 0
