"""Rows of a data set, of the Hub or in a folder; needs the package datasets, and is imported only for them.

A data set is made for many uses. So its other columns are left out, where a file with an unknown key in a row
would be refused, and a note says which.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from ..checkpoint.hub_reach import HttpError, offline_reason
from ..errors import JobError, first_line
from .jobs import JobRow, row_of
from .printing import note, working
from .quiet_hub import hub_bars, silence_hub
from .row_columns import PROMPT_KEYS, PROMPTS, SCORE_KEYS, Columns
from .row_sources import RowSource

_SAVED = ("state.json", "dataset_dict.json")
"""Files in a folder that `save_to_disk` wrote: of one split, and of several."""

_MOST_ERROR_CHARACTERS = 500

_SPLIT = re.compile(r"\w+(?:\.\w+)*")

_CONFIG_ERROR = re.compile(r"Config name is missing|BuilderConfig .* not found\b")
"""What datasets says where no configuration is chosen, or one that does not exist."""


def read_dataset_rows(
    source: RowSource, *, command: str, local_files_only: bool, shown: bool
) -> list[JobRow]:
    """Return the rows of one split of a data set. What is not in the cache yet is downloaded.

    Args:
        source: the data set, its configuration, split and columns.
        command: `batch` or `score`, which decides what a row needs.
        local_files_only: download nothing.
        shown: say on stderr what is read.

    Raises:
        JobError: there is no such data set, it cannot be read, or it is not clear what of it is meant.
    """
    _silence()
    if source.is_folder:
        tables, described = _open_folder(source)
    else:
        tables, described = _open_from_hub(source, local_files_only=local_files_only, shown=shown)
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    taken = _columns_to_take(source, names, command)
    records = _with_own_ids([record for table in tables for record in _records(table, taken)])
    if not source.columns:
        records = [_with_one_prompt(record) for record in records]
    if shown:
        note(f"{described}: {_describe(len(records), names, taken, source.columns)}")
    return [row_of(number, record, source.columns) for number, record in enumerate(records, start=1)]


def _open_folder(source: RowSource) -> tuple[list[Dataset], str]:
    """Return the rows that are meant, as tables, and what they are, in words."""
    folder = source.path
    if any((folder / name).is_file() for name in _SAVED):
        if source.config is not None:
            raise JobError(
                f"{folder} was written by save_to_disk, without configurations: leave --config out"
            )
        with _errors_translated(source.text):
            loaded = datasets.load_from_disk(folder)
        splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else dict(loaded)
        return _select(source, splits, folder.name)
    # an absolute path is never taken for an id of the Hub
    return _prepare(source, _builder(source, str(folder.resolve())), folder.name, shown=False)


def _open_from_hub(source: RowSource, *, local_files_only: bool, shown: bool) -> tuple[list[Dataset], str]:
    name, revision = source.hub_place()
    offline = _why_offline(local_files_only=local_files_only)
    with _offline(is_offline=offline is not None):
        with working(f"looking for the data set {name}", shown=shown):
            builder = _builder(source, f"hf://datasets/{name}", revision, offline)
        is_cached, commit = builder.name == "cache", str(builder.hash)
        why = offline or "the Hub refused it or did not answer"
        if is_cached:
            _refuse_other_revision(name, revision, commit, why)
        tables, described = _prepare(source, builder, name, shown=shown)
    where = f", from the cache because {why}" if is_cached else ""
    return tables, f"{described} (commit {commit[:12]}{where})"


def _why_offline(*, local_files_only: bool) -> str | None:
    # asked first: HF_DATASETS_OFFLINE is a setting of datasets alone, and offline_reason would ask the Hub
    if datasets.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE:
        return "offline mode (HF_DATASETS_OFFLINE) forbids a download"
    return offline_reason(local_files_only=local_files_only)


def _prepare(
    source: RowSource, builder: DatasetBuilder, name: str, *, shown: bool
) -> tuple[list[Dataset], str]:
    known = [str(split) for split in builder.info.splits or builder.config.data_files or ()]
    if known:
        _check_split(source, known)
    with _errors_translated(source.text), _bars(shown=shown):
        builder.download_and_prepare()
        splits = {str(split): table for split, table in builder.as_dataset().items()}
    return _select(source, splits, f"{name}, {builder.config.name}" if builder.config.name else name)


def _builder(
    source: RowSource, path: str, revision: str | None = None, offline: str | None = None
) -> DatasetBuilder:
    with _errors_translated(source.text, revision):
        try:
            return datasets.load_dataset_builder(path, source.config, revision=revision)
        except ConnectionError as error:
            if source.is_folder:
                raise
            raise JobError(
                f"there is no file {source.text} here, the data set is not in the local cache, "
                f"{datasets.config.HF_DATASETS_CACHE}, and {offline or first_line(error)}; read it once with "
                "a connection"
            ) from error
        except ValueError as error:
            if (said := _cache_said(error)) is not None:
                raise JobError(f"{said}; choose one with --config") from error
            if not _CONFIG_ERROR.match(str(error)):
                raise
            names = datasets.get_dataset_config_names(path, revision=revision)
            has = "several configurations" if source.config is None else f"no configuration {source.config!r}"
            raise JobError(f"{source.text} has {has}; choose one with --config: {_listed(names)}") from error


def _cache_said(error: ValueError) -> str | None:
    """Return what is in the cache, where the configuration was looked for there only."""
    lines = [line for line in str(error).splitlines() if "in the cache" in line or "find cache" in line]
    return "; ".join(lines) or None


def _check_split(source: RowSource, names: Sequence[str]) -> str:
    """Return the split to read, or an expression of splits such as `test[:100]`."""
    if source.split is None:
        if len(names) != 1:
            raise JobError(f"{source.text} has several splits; choose one with --split: {_listed(names)}")
        return names[0]
    if source.split == "all":
        return "+".join(names)
    for part in source.split.split("+"):
        found = _SPLIT.match(part.strip())
        if found is None or found.group() not in names:
            raise JobError(
                f"{source.text} has no split {part.strip()!r}; choose one with --split: {_listed(names)}"
            )
    return source.split


def _select(source: RowSource, splits: Mapping[str, Dataset], name: str) -> tuple[list[Dataset], str]:
    spec = _check_split(source, list(splits))
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(
            {name: len(table) for name, table in splits.items()}
        )
    except (AssertionError, ValueError) as error:
        raise JobError(
            f"--split {spec} cannot be read ({first_line(error)}); write a split, or a part of one such as "
            "test[:100] or test[:10%]"
        ) from error
    return [splits[part.splitname].select(range(part.from_, part.to)) for part in parts], f"{name}, {spec}"


def _columns_to_take(source: RowSource, names: Sequence[str], command: str) -> list[str]:
    """Return the columns that are read, in the order of the data set."""
    by_key = source.columns.by_key
    if by_key:
        for key, column in by_key.items():
            if column not in names:
                raise JobError(
                    f"{source.text} has no column {column!r}; choose one with --{key}-column: "
                    f"{_listed(names)}"
                )
        wanted: Iterable[str] = ("id", *by_key.values())
    else:
        can_be_scored = all(key in names for key in SCORE_KEYS)
        if command == "score" and not can_be_scored:
            raise JobError(
                f"{source.text} has no columns prefix and suffixes; say with --prefix-column and "
                f"--suffixes-column which ones they are: {_listed(names)}"
            )
        if command != "score" and not can_be_scored and not any(key in names for key in PROMPTS):
            raise JobError(
                f"{source.text} has no column prompt, messages or ids; say with --prompt-column which one "
                f"is the prompt: {_listed(names)}"
            )
        wanted = ("id", *SCORE_KEYS, *(("adapter",) if command == "score" else PROMPT_KEYS))
    return [name for name in names if name in wanted]


def _records(table: Dataset, taken: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of one split. No table is made of all: types may differ."""
    names = [name for name in taken if name in table.column_names]
    return table.select_columns(names).to_list() if names else [{} for _ in range(len(table))]


def _describe(num_rows: int, names: Sequence[str], taken: Sequence[str], columns: Columns) -> str:
    """Return what is read, for the note."""
    read, left_out = ", ".join(taken), [name for name in names if name not in taken]
    prompts = [name for name in PROMPTS if name in taken]
    if not columns and len(prompts) > 1:
        read += f" (of {' and '.join(prompts)}, the first that a row has)"
    more = f"; left out: {_listed(left_out)}" if left_out else ""
    return f"{num_rows} {'row' if num_rows == 1 else 'rows'}; read: {read}{more}"


def _with_own_ids(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with the ids that they have, or without, where these do not tell them apart."""
    ids = [record.get("id") for record in records]
    if all(type(each) in (int, str) for each in ids) and len(set(ids)) == len(ids):
        return records
    return [{name: value for name, value in record.items() if name != "id"} for record in records]


def _with_one_prompt(record: Mapping[str, Any]) -> dict[str, Any]:
    filled = [name for name in PROMPTS if record.get(name) is not None]
    return {name: value for name, value in record.items() if name not in filled[1:]}


def _refuse_other_revision(name: str, revision: str | None, commit: str, why: str) -> None:
    """Refuse what the cache has last seen, where another revision is meant; None means the main branch."""
    # which commit a branch led to when it was last read
    repository = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    reference = repository / "refs" / (revision or "main")
    wanted = reference.read_text().strip() if reference.is_file() else revision
    if wanted not in (commit, None):
        raise JobError(
            f"the revision {revision or 'main'!r} of the data set {name} cannot be read: {why}, and the "
            f"cache's latest copy is of the commit {commit}; read it once with a connection, or take that "
            f"copy: {name}@{commit}"
        )


@contextmanager
def _offline(*, is_offline: bool) -> Iterator[None]:
    """Let datasets ask nobody, as HF_HUB_OFFLINE does: it would try for long."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or is_offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _errors_translated(name: str, revision: str | None = None) -> Iterator[None]:
    try:
        yield
    except JobError:
        raise
    except DatasetNotFoundError as error:
        raise JobError(_why_not_found(name, revision, str(error))) from error
    except (DataFilesNotFoundError, datasets.data_files.EmptyDatasetError) as error:
        raise JobError(
            f"{name} holds no files that the package datasets can read, such as JSON lines, parquet or CSV"
        ) from error
    except (ConnectionError, HttpError) as error:
        raise JobError(
            f"the data set {name} cannot be downloaded: {first_line(error)}; run it again to go on"
        ) from error
    except Exception as error:  # its files and its card are whatever its authors made of them
        cause = error.__cause__ or error
        said = " ".join(f"{type(cause).__name__}: {cause}".split())[:_MOST_ERROR_CHARACTERS]
        raise JobError(f"the data set {name} cannot be read: {said}") from error


def _why_not_found(name: str, revision: str | None, said: str) -> str:
    if "gated" in said:
        return (
            f"access to the data set {name} is restricted; request it on its page and sign in with "
            "`hf auth login`"
        )
    if revision is not None and said.startswith("Revision"):
        return f"the data set {name} has no revision {revision!r}; look at its page for branches and tags"
    return (
        f"there is no file or folder {name} here, and the Hub has no such data set; check the spelling, and "
        "for a private one sign in with `hf auth login`"
    )


def _silence() -> None:
    """Show only errors of datasets, and no progress bars."""
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    silence_hub()


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Let the download and the preparation of a data set show their own progress bars, on a terminal."""
    if shown and sys.stderr.isatty():
        datasets.enable_progress_bars()
    try:
        with hub_bars(shown=shown):
            yield
    finally:
        datasets.disable_progress_bars()


def _listed(names: Sequence[str], most: int = 40) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
