"""URLs that name a model: what they refer to, how they are shown, and where their local copies lie.

Room: bytes. It knows text and paths; it opens nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import CheckpointNotFoundError, PlanError
from ..spec.options import LoadOptions
from .user_cache import cache_directory

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
# A job that goes on pins the commit that its branch led to at first.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = "hf"
_MOST_SLUG_CHARACTERS = 80


def scheme_of(name: str) -> str:
    """Return the scheme of a URL, such as `s3`; empty for a directory or a Hub id."""
    match = _SCHEME.match(name)
    return match.group(1).lower() if match else ""


def is_url(name: str) -> bool:
    """Return whether `name` is a URL whose files are copied to this machine (`hf://` means the Hub)."""
    return scheme_of(name) not in ("", _HUB)


def hub_place(name: str, options: LoadOptions) -> tuple[str, LoadOptions]:
    """Return the Hub id and the options that `hf://owner/name[@revision]` stands for.

    Any other name is returned as it is.

    Raises:
        CheckpointNotFoundError: the URL names no repository.
        PlanError: the options name another revision, which is no commit.
    """
    if scheme_of(name) != _HUB:
        return name, options
    parts = name.split("://", 1)[1].strip("/").split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in ("datasets", "spaces"):
        raise CheckpointNotFoundError(
            f"{name!r} names no model of the Hub; write hf://organisation/model or "
            "hf://organisation/model@revision, with %2F for each / in the revision, and give a folder inside "
            "the model as the subfolder"
        )
    repository, _, written = parts[1].partition("@")
    revision = unquote(written) or None
    is_pinned = options.revision is not None and _COMMIT.fullmatch(options.revision) is not None
    if revision and options.revision and revision != options.revision and not is_pinned:
        raise PlanError(f"{name!r} and revision={options.revision!r} contradict each other: give one of them")
    return f"{parts[0]}/{repository}", replace(options, revision=options.revision or revision)


def check_url(url: str) -> str:
    """Return `url` without slashes at its end.

    Raises:
        CheckpointNotFoundError: it names a single file, or holds what plans and reports must not show: a
            password or, with http(s), a user name, which may be a token, a query or a fragment.
    """
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    is_web = parts.scheme in ("http", "https")
    if is_web and (parts.username or parts.password):
        raise CheckpointNotFoundError(
            f"the URL {where} holds a user name or a password, which reports would show; if the server asks "
            "for them, copy the folder here and give its path"
        )
    if parts.password:
        raise CheckpointNotFoundError(
            f"the URL {where} holds a password, which reports would show; put it where the driver of "
            f"{parts.scheme} looks for credentials, such as its environment variables"
        )
    if is_web and (parts.query or parts.fragment):
        raise CheckpointNotFoundError(
            f"the URL {where} has something after ? or #; give the plain URL of the folder with the model"
        )
    if parts.path.endswith((".safetensors", ".json")):
        raise CheckpointNotFoundError(
            f"{where} is a file; give the URL of the folder that contains it and its config.json"
        )
    return url.rstrip("/")


def copy_folder(url: str, cache_dir: str | Path | None = None) -> Path:
    """Return where the copy of `url` lies: under the user's cache, or under `cache_dir`."""
    base = cache_directory() / "models" if cache_dir is None else Path(cache_dir).expanduser()
    plain = url.rstrip("/")
    slug = "-".join(_UNSAFE.sub("-", part) for part in plain.split("://", 1)[1].split("/")[-2:])
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    return base / f"{scheme_of(url)}-{slug[-_MOST_SLUG_CHARACTERS:].strip('-.')}-{digest}"
