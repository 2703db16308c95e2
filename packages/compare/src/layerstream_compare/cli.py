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
from rich.text import Text

from . import __version__
from .announcement import announcement
from .errors import CompareError, ExperimentError
from .experiment import FINAL_STATUSES, Experiment, run
from .live import LiveView, follow
from .measurement import Measurement
from .protocol import one_line
from .reports.files import write_reports
from .reports.metrics import rows_of
from .reports.terminal import terminal_notes, terminal_table
from .results import read_results
from .runners.in_process import run_in_process
from .runners.isolate import run_isolated
from .variants.registry import list_variants

app = typer.Typer(
    name="layerstream-compare",
    help="Compare ways to run a model: streamed by layerstream, held whole in memory, quantized; and "
    "attention kernels. Each runs one prompt in a process of its own: memory, time, and how far it is from "
    "the exact model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        sys.stdout.write(f"layerstream-compare {__version__}\n")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
]


@app.callback()
def _root(show_version: Version = False) -> None:
    pass


_DEFAULT_VARIANTS = "streamed,resident,bnb-int8,bnb-nf4"
_LENGTH = re.compile(r"([0-9]+)(k?)", re.IGNORECASE)


@app.command("run")
def run_command(  # noqa: PLR0913  each option is an argument
    model: Annotated[str, typer.Option(help="Folder or Hub id of the model.")],
    prompt: Annotated[str, typer.Option(help="The prompt.")] = "",
    prompt_file: Annotated[
        Path | None, typer.Option(help="Text file with the prompt, instead of --prompt.")
    ] = None,
    variants: Annotated[
        str,
        typer.Option(
            help="Ways to hold the weights, separated by commas, or `all`; the command variants lists them."
        ),
    ] = _DEFAULT_VARIANTS,
    attention: Annotated[
        str,
        typer.Option(
            help="Attention kernels, separated by commas, or `all`; the command variants lists them."
        ),
    ] = "default",
    lengths: Annotated[
        str,
        typer.Option(
            help="Prompt lengths in tokens, such as 512,1k,4k: the prompt is repeated or cut; 0 keeps it."
        ),
    ] = "0",
    max_new_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer; the likeliest token is always taken.")
    ] = 60,
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
    dtype: Annotated[
        str,
        typer.Option(
            help="Number format of weights that are not quantized, such as float16; auto keeps the model's."
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(help="Where to run: cpu, cuda, ...; auto is the accelerator (a GPU) if there is one."),
    ] = "auto",
    rounds: Annotated[
        int, typer.Option(help="Measure everything this many times, one round after another.")
    ] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 keeps torch's default.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds after which a case is stopped.")] = 1800.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results and reports. The same command goes on there after a stop."),
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
        bool, typer.Option("--no-quality", help="Do not measure agreement with the exact model: faster.")
    ] = False,
    prose: Annotated[
        bool,
        typer.Option(
            "--prose",
            help="Measure agreement on 512 tokens of prose too, not only on the answer: surer figures, "
            "but on a slow CPU this takes longer than everything else together.",
        ),
    ] = False,
    no_noise_floor: Annotated[
        bool,
        typer.Option(
            "--no-noise-floor",
            help="Leave out the case that shows how much rounding alone changes: the original weights with "
            "another attention kernel.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record per case instead of the table.")
    ] = False,
) -> None:
    """Run one prompt through every combination of variant, kernel and length, and compare them.

    Agreement is how close the next-token probabilities are to the exact model's. `--prompt` or
    `--prompt-file` is required.
    """
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
        prose=prose,
        noise_floor=not no_noise_floor,
        out=out,
    )
    runner = run_in_process if in_process else run_isolated
    view, console = LiveView(experiment.cases()), Console(stderr=True, highlight=False)
    try:
        with closing(run(experiment, runner=runner, restart=restart)) as events:
            follow(events, view, console, announcement(experiment))
    except KeyboardInterrupt:
        _interrupted(experiment, view.measurements, restart=restart, as_json=as_json)
        raise typer.Exit(130) from None
    _show(view.measurements, as_json=as_json)
    if out is not None:
        _write(read_results(out), out)
    if any(measurement.status == "failed" for measurement in view.measurements):
        raise typer.Exit(1)


def _interrupted(
    experiment: Experiment, measurements: Sequence[Measurement], *, restart: bool, as_json: bool
) -> None:
    """Say what an interrupted run leaves, on a line of its own: the terminal has just shown ^C."""
    sys.stderr.write("\n")
    done = sum(measurement.status in FINAL_STATUSES for measurement in measurements)
    cases = f"{done} of {len(experiment.cases())} cases"
    if experiment.out is not None:
        again = "the same command without --restart" if restart else "the same command again"
        line = f"stopped: {cases} are kept in {experiment.out}; run {again} to go on"
    else:
        if measurements:
            _show(measurements, as_json=as_json)
        line = f"stopped: {cases} were measured; with --out FOLDER they are kept, and a second run goes on"
    sys.stderr.write(f"{line}\n")


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="The folder that `run --out` wrote.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record per case instead of the table.")
    ] = False,
) -> None:
    """Show the table of a folder's results, also of an unfinished run, and write its reports anew."""
    measurements = read_results(folder)
    _show(measurements, as_json=as_json)
    _write(measurements, folder)


@app.command("variants")
def variants_command() -> None:
    """List every variant: whether this machine can run it, and if not, why and what would help."""
    console = Console(highlight=False)
    for kind, heading in (
        ("weights", "How the weights are held: for --variants"),
        ("attention", "How attention is computed: for --attention"),
    ):
        table = Table(box=None, pad_edge=False)
        table.add_column("name", no_wrap=True)
        table.add_column("runs here", no_wrap=True)
        table.add_column("what it is, or why it does not run", overflow="fold")
        for variant in list_variants(kind):
            reason = variant.availability()
            table.add_row(variant.name, "no" if reason else "yes", Text(reason or variant.title))
        console.print(Text(heading, style="bold"), table, "", sep="\n")


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
    sys.stderr.write(f"wrote {', '.join(path.name for path in paths)} to {folder}\n")


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
