"""`layerstream batch`: answer the rows of a file or a data set in shared sweeps; resumes at any time.

Results go to a file, progress and notes to stderr, nothing to stdout.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PlanError
from ..spec.options import LoadOptions
from . import backend, parts
from .answer_options import Chat, Seed, System, Temperature, TopP, refuse_unused_system, stop_texts
from .options import model_or_default, takes_load_options
from .row_options import Config, PromptColumn, Split

if TYPE_CHECKING:
    from .prompt_rows import PromptDefaults
    from .result_file import Resume
    from .row_job import AnswerRows, RowKind

_RESUMING = "Continuing existing results"
_ON_RAY = "On a Ray cluster"

Rows = Annotated[
    str,
    typer.Argument(
        help='JSON lines, one row each: {"id": ..., "prompt": "...", "max_new_tokens": ...}, '
        "a row for 'layerstream score', or a row of an OpenAI batch. Or a parquet file; or a Hugging Face "
        "data set: its id, owner/name or owner/name@revision, or a folder."
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
        help="The maximum number of new tokens.",
        metavar="N",
        min=1,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End an answer with this text, which stays in it. Repeat it for several.",
        show_default=False,
    ),
]
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
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS|local",
        help="Let the workers of this Ray cluster answer; local starts one here. Each row gets what it "
        "would get alone, as with --no-packed.",
        show_default=False,
        rich_help_panel=_ON_RAY,
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="At most N workers, each with a copy of what stays in memory.",
        min=1,
        show_default="one for each drive, or one",
        rich_help_panel=_ON_RAY,
    ),
]
WorkerCpus = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Cores for each worker, which is also its number of threads.",
        min=1,
        show_default="on a cluster: 1; local: all of them, shared",
        rich_help_panel=_ON_RAY,
    ),
]
WorkerGpus = Annotated[
    float,
    typer.Option(metavar="N", help="Accelerators for each worker.", min=0, rich_help_panel=_ON_RAY),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no plan, progress or report.")]


@takes_load_options(several_devices=True, draft=True)
def batch_command(
    rows: Rows,
    results: Results,
    model: Model = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    chat: Chat = False,
    system: System = None,
    packed: Packed = True,
    max_rows: MaxRows = None,
    *,
    restart: Restart = False,
    resume_anyway: ResumeAnyway = False,
    retry_errors: RetryErrors = False,
    options: LoadOptions,
    config: Config = None,
    split: Split = None,
    prompt_column: PromptColumn = None,
    ray: Ray = None,
    workers: NumWorkers = None,
    worker_cpus: WorkerCpus = None,
    worker_gpus: WorkerGpus = 0,
    quiet: Quiet = False,
) -> None:
    """Answer the prompts of a file or a data set, many at once: they share each reading of the weights.

    A row's own settings override these options. Run it again after an interruption, and it continues.
    """
    refuse_unused_system(system, chat=chat)
    answer = _answer_with(ray, workers, worker_cpus, worker_gpus)
    defaults = parts.PromptDefaults(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop_texts(stop),
        chat=chat,
        system=system,
        packed=packed and ray is None,
        max_rows=max_rows,
    )
    model = model_or_default(model, options)
    parts.run_job(
        parts.RowJob(
            command="batch",
            source=parts.RowSource(
                text=rows, config=config, split=split, columns=parts.Columns(prompt=prompt_column)
            ),
            results_path=results,
            model=model,
            options=options,
            settings=defaults.settings,
            make_kinds=partial(_make_kinds, model, defaults, scores=ray is None),
            resume=resume_of(restart=restart, anyway=resume_anyway, retry_errors=retry_errors),
            max_rows=max_rows,
            seed=seed,
            quiet=quiet,
        ),
        answer,
    )


def _answer_with(
    ray: str | None, workers: int | None, worker_cpus: int | None, worker_gpus: float
) -> AnswerRows | None:
    """Return what answers the rows; None is this process.

    Raises:
        PlanError: Ray is not installed, or options are for it and it was not asked for.
    """
    if ray is None:
        if workers or worker_cpus or worker_gpus:
            raise PlanError(
                "--workers, --worker-cpus and --worker-gpus are for --ray: give --ray ADDRESS or local"
            )
        return None
    if missing := [name for name in ("ray", "pyarrow") if find_spec(name) is None]:
        raise PlanError(f"--ray needs {missing[0]}, which is not installed: pip install 'layerstream[ray]'")
    settings = parts.ClusterSettings(
        address=ray, workers=workers, worker_cpus=worker_cpus, worker_gpus=worker_gpus
    )
    return partial(parts.answer_on_ray, settings)


def resume_of(*, restart: bool, anyway: bool, retry_errors: bool) -> Resume:
    """Return the options as one value.

    Raises:
        PlanError: they contradict each other.
    """
    if restart and (anyway or retry_errors):
        other = "--resume-anyway" if anyway else "--retry-errors"
        raise PlanError(f"--restart starts afresh and {other} goes on: give one of them")
    return parts.Resume(restart=restart, anyway=anyway, retry_errors=retry_errors)


def _make_kinds(model: str, defaults: PromptDefaults, options: LoadOptions, *, scores: bool) -> list[RowKind]:
    tokenizer, config = backend.load_text_parts(model, options)
    if defaults.system is not None:
        parts.check_system(tokenizer, defaults.system)
    vocab_size = int(config.vocab_size)
    # where a model lies on this machine is nothing for an answer
    name = Path(model).name if Path(model).is_dir() else model
    score_rows = [parts.ScoreRows(tokenizer, config, max_rows=defaults.max_rows)] if scores else []
    return [
        parts.PromptRows(tokenizer, defaults, vocab_size),
        *score_rows,
        parts.OpenAIRows(tokenizer, defaults, vocab_size, model=name),
    ]
