"""`generate` and `score`: the rows of a Ray dataset, with their answers or scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ray.data import Dataset

from ..errors import PlanError
from ..simulation import dtype_name
from ..spec.keywords import refuse_keywords
from ..spec.options import LoadOptions, Workload
from .generation_worker import GenerationWork, GenerationWorker
from .kept_rows import KeptFolder
from .loading import MOST_ROWS, WorkerModel
from .progress import JobProgress
from .rows import PromptColumn, ScoreColumns, check_columns
from .scoring_worker import ScoringWork, ScoringWorker
from .workers import BLOCKS_AT_ONCE, Workers, block_rows, in_blocks, refuse_hidden_devices, workers_of

_NOT_HERE = {"workload", "draft_acceptance", "prefix_cache"}
_LOAD = {field.name for field in fields(LoadOptions)} - _NOT_HERE
_DRAFT = {name for name in _LOAD if name.startswith("draft")}

_NO_DRAFT = "scoring needs no draft; leave it out"
_NO_NEW_TOKENS = "scoring generates no tokens; leave it out"
_INSTEAD = {
    "batch_size": "give rows_per_block",
    "max_length": "give prompt_tokens, the longest prompt that memory is planned for",
    "draft_acceptance": "it is for plan(): leave it out",
    "prefix_cache": "rows continue no conversation: leave it out",
}
_INSTEAD_OF_GENERATING = {
    **_INSTEAD,
    "new_tokens": "give max_new_tokens",
    "workload": "give prompt_tokens, max_new_tokens and rows_per_block",
}
_INSTEAD_OF_SCORING = {
    **_INSTEAD,
    **dict.fromkeys((*sorted(_DRAFT), "draft_acceptance", "exact_ties"), _NO_DRAFT),
    **dict.fromkeys(("new_tokens", "max_new_tokens"), _NO_NEW_TOKENS),
    "workload": "give prompt_tokens and rows_per_block",
}


def generate(  # noqa: PLR0913 - each is a keyword that users expect
    rows: Dataset,
    *,
    model: str | Path,
    prompt: str = "prompt",
    max_new_tokens: int = 64,
    prompt_tokens: int = 1024,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    chat: bool = False,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    disk_share: float | None = None,
    rows_per_block: int | None = None,
    id_column: str | None = None,
    progress_dir: str | Path | None = None,
    **load: Any,
) -> Dataset:
    """Return `rows` with answers, which workers generate when the result is read or written.

    Each worker loads the model once. Rows of several blocks share its sweeps, and each row has a tensor of
    its own, so its answer is that of plain generation, bit for bit, unless `exact_ties=False`. A row that
    cannot be answered has an `error`; it fails nothing else.

    Args:
        rows: any Ray dataset.
        model: a directory that every node has, a Hub id, or a URL that each node fetches once.
        prompt: the column with the prompts: texts, lists of token ids, or lists of messages.
        max_new_tokens: the maximum number of new tokens of an answer.
        prompt_tokens: the longest prompt, in tokens. Memory is planned for it; what does not fit is an error
            of its row.
        temperature: sample at this temperature. Without it and `top_p`, the likeliest token is taken.
        top_p: sample from the likeliest tokens that together have this probability, above 0 and at most 1.
        seed: makes sampling repeatable: each row is sampled with it.
        stop: texts that end an answer, which includes the one that ended it.
        chat: put texts into the checkpoint's chat template.
        concurrency: how many workers; a pair is the least and the most, between which Ray decides.
        num_cpus: cores for each worker, which is also how many threads compute on a CPU.
        num_gpus: accelerators for each worker; with `devices`, the number of devices.
        disk_share: how much of its node's `layerstream_disk` a worker takes. None takes 1 where nodes declare
            it, so that no two workers read from one drive.
        rows_per_block: how many rows are committed together; None asks the planner how many share a sweep.
        id_column: the column that tells rows apart, for `progress_dir`.
        progress_dir: a folder that every node can write to, or an address such as `s3://…`. Ray records there
            which rows are written, so that a job that is started again skips them, and workers keep their
            latest blocks there. This call removes those that an earlier start has written.
        load: keywords of `layerstream.load`, such as `budget`, `draft`, `dtype` and `device`. With `devices`,
            such as `("cuda:0", "cuda:1")`, a worker's devices share its rows and each reading of the weights;
            rows that sample go to the first one.

    Returns:
        The rows with `answer`, `tokens` (ids), `finish_reason` and `error`.

    Raises:
        BudgetTooSmallError: a node that was asked has too little memory, with `needed_bytes`. Other nodes
            are asked when they start a worker; then the job ends with the message.
        PlanError: a setting cannot be used.
        CheckpointError, ModelError: the model cannot be used.
    """
    column = PromptColumn(
        name=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=_texts(stop),
        chat=chat,
    )
    column.request({prompt: "any"})  # refuses settings that each row would be refused for
    _check_rows(rows, column, id_column)
    _refuse_keywords("generate", load, _LOAD, _INSTEAD_OF_GENERATING)
    workers = workers_of(concurrency, num_cpus=num_cpus, num_gpus=num_gpus, disk_share=disk_share)
    found = _worker_model(model, load, prompt_tokens, max_new_tokens)
    num_rows = _num_rows(rows_per_block, found, workers)
    progress = JobProgress.of(progress_dir, id_column)
    work = GenerationWork(
        model=found, rows=column, most_waiting=num_rows * BLOCKS_AT_ONCE, kept=_kept(progress)
    )
    answered = in_blocks(rows, GenerationWorker, work, workers, num_rows=num_rows)
    return _recording_what_is_written(answered, progress)


def score(  # noqa: PLR0913 - each is a keyword that users expect
    rows: Dataset,
    *,
    model: str | Path,
    prefix: str = "prefix",
    suffixes: str = "suffixes",
    head: str | Path | None = None,
    prompt_tokens: int = 1024,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    disk_share: float | None = None,
    rows_per_block: int | None = None,
    id_column: str | None = None,
    progress_dir: str | Path | None = None,
    **load: Any,
) -> Dataset:
    """Return `rows` with the scores of their suffixes, computed when the result is read or written.

    Args:
        rows: any Ray dataset.
        model: as for `generate`.
        prefix: the column with the prefixes: texts or lists of token ids.
        suffixes: the column with a list of suffixes in each row.
        head: a safetensors file that every node has, whose outputs score in place of log-probabilities.
        prompt_tokens: the longest prefix with its longest suffix, in tokens; memory is planned for it.
        concurrency: as for `generate`.
        num_cpus: as for `generate`.
        num_gpus: as for `generate`.
        disk_share: as for `generate`.
        rows_per_block: as for `generate`.
        id_column: as for `generate`.
        progress_dir: as for `generate`.
        load: keywords of `layerstream.load`, such as `budget`, `dtype`, `device` and `devices`; there is no
            draft.

    Returns:
        The rows with `best`, `best_by_mean`, `scores` (for each suffix what `layerstream score` writes) and
        `error`.

    Raises:
        BudgetTooSmallError, PlanError, CheckpointError, ModelError: as for `generate`.
    """
    columns = ScoreColumns(prefix=prefix, suffixes=suffixes, has_head=head is not None)
    _check_rows(rows, columns, id_column)
    _refuse_keywords("score", load, _LOAD - _DRAFT - {"exact_ties"}, _INSTEAD_OF_SCORING)
    workers = workers_of(concurrency, num_cpus=num_cpus, num_gpus=num_gpus, disk_share=disk_share)
    found = _worker_model(model, load, prompt_tokens, 0)
    progress = JobProgress.of(progress_dir, id_column)
    work = ScoringWork(
        model=found, columns=columns, head=None if head is None else str(head), kept=_kept(progress)
    )
    num_rows = _num_rows(rows_per_block, found, workers)
    scored = in_blocks(rows, ScoringWorker, work, workers, num_rows=num_rows)
    return _recording_what_is_written(scored, progress)


def _texts(stop: Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _check_rows(rows: Dataset, format_: PromptColumn | ScoreColumns, id_column: str | None) -> None:
    """Check the columns where they are known before a row is read; workers check each block."""
    columns = rows.columns(fetch_if_missing=False)
    if columns is not None:
        format_.check(columns)
        check_columns(columns, needed=[] if id_column is None else [id_column], added=())


def _refuse_keywords(
    verb: str, load: Mapping[str, Any], known: Collection[str], instead: Mapping[str, str]
) -> None:
    refuse_keywords(verb, sorted(load.keys() - known), sorted(known), instead=instead)


def _worker_model(
    model: str | Path, load: dict[str, Any], prompt_tokens: int, new_tokens: int
) -> WorkerModel:
    if "dtype" in load:
        load = {**load, "dtype": dtype_name(load["dtype"])}
    workload = Workload(batch_size=MOST_ROWS, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    return WorkerModel.of(model, LoadOptions(**load, workload=workload))


def _num_rows(rows_per_block: int | None, model: WorkerModel, workers: Workers) -> int:
    refuse_hidden_devices(model, workers)
    if rows_per_block is None:
        return block_rows(model, workers)
    if rows_per_block < 1:
        raise PlanError(f"rows_per_block must be at least 1; got {rows_per_block}")
    return rows_per_block


def _kept(progress: JobProgress | None) -> KeptFolder | None:
    """Return where workers keep their rows, without those that an earlier start has written."""
    if progress is None:
        return None
    progress.forget_written()
    return progress.kept


def _recording_what_is_written(rows: Dataset, progress: JobProgress | None) -> Dataset:
    """Return `rows` such that what is written of them is recorded, and skipped next time.

    The record is a setting of a dataset's context, which datasets share with those that they were made of; so
    this one gets a context of its own.
    """
    if progress is None:
        return rows
    own: Dataset = Dataset.copy(rows, _deep_copy=True)
    own.context.checkpoint_config = progress.checkpoint
    return own
