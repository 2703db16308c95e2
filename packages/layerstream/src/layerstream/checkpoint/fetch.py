"""Get a model's files onto this machine, wherever they are: the public verb `fetch`.

Room: bytes.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import PlanError
from ..spec.options import LoadOptions
from .hub import resolve_model
from .url_copy import OnFetch, copy_checkpoint, place_of
from .urls import is_url


def fetch(
    model: str | Path,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    variant: str | None = None,
    on_progress: OnFetch | None = None,
) -> Path:
    """Copy a model's files to this machine, unless they are there, and return their directory.

    One process copies at a time; others wait for it and then find the files. A copy that was interrupted
    goes on from where it stopped, and a file that has changed at its source is copied anew. Each file is
    checked by its size, and weights by their header.

    Args:
        model: a URL such as `s3://bucket/model`, `gs://…`, `https://…`, `hf://organisation/model@revision` or
            `file:///shared/model`, or any other that fsspec knows; a Hub id; or a directory, which is
            returned as it is. S3 needs the package s3fs, Google Cloud gcsfs. `http(s)://` must be the folder
            that holds `config.json`, and `model.safetensors` or its index.
        folder: where the files of a URL go; None is a folder of the user's cache, made from the URL.
        revision: branch, tag or commit on the Hub.
        token: the access token for the Hub; None is the one of `HF_TOKEN` or `hf auth login`.
        cache_dir: the directory of the Hub's cache, or the one for copies of URLs.
        local_files_only: copy nothing; what is not there is an error.
        subfolder: the folder of the checkpoint that holds config, weights and tokenizer.
        variant: which files hold the weights: `"fp16"` is `model.fp16.safetensors`.
        on_progress: called with a `FetchProgress` after each piece of a URL's files.

    Returns:
        The directory; the files are in its `subfolder`.

    Raises:
        CheckpointNotFoundError: there is no such model, or access is refused.
        FetchError: a package is missing, the server fails, or the disk is too full (with `needed_bytes`).
        ShardCorruptError: a file's header does not fit its size; with `path`.
        UnsupportedFormatError: the weights are not safetensors.
        PlanError: `folder` is given for something other than a URL.
    """
    options = LoadOptions(
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder=subfolder,
        variant=variant,
    )
    name = str(model)
    if is_url(name):
        place = place_of(name, options, None if folder is None else Path(folder).expanduser())
        return copy_checkpoint(place, weights=True, local_only=local_files_only, on_fetch=on_progress)
    if folder is not None:
        raise PlanError(
            f"{name} is no URL whose files can go into {folder}: leave out the folder; files of the Hub go "
            "into its cache, see cache_dir"
        )
    return resolve_model(name, options, weights=True)
