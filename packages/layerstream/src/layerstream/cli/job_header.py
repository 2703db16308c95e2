"""The header of a results file: what made the results below it, and how two headers differ.

It is one line of JSON, `{"layerstream_job": 1, ...}`. Whatever can change a result is in it; memory budget,
device, `--max-rows` and `--quiet` are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..spec.options import LoadOptions
from . import backend

FORMAT = 1
"""The version of the header's own format."""

KEY = "layerstream_job"
"""The first key of a header line, and of no result."""

# Options of `load` that say where the model comes from or where it runs: the model's fingerprint stands for
# the former. A token must never be written. Whatever is not listed counts as a setting.
_NOT_SETTINGS = frozenset(
    {
        "budget",
        "device",
        "devices",
        "workload",
        "revision",
        "token",
        "cache_dir",
        "local_files_only",
        # how far a draft guesses changes no result
        "draft_tokens",
        "draft_width",
        "draft_acceptance",
        # only servers keep conversations
        "prefix_cache",
    }
)
_LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHeader:
    """What made a part of a results file.

    Attributes:
        command: `batch` or `score`; empty if it is not known what made the results.
        model: its `name` and `revision` as given, for people, and its `fingerprint`.
        settings: every setting that can change a result.
        versions: of layerstream, torch and transformers.
    """

    command: str
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the header as a line of the file, newline included."""
        record = {
            KEY: FORMAT,
            "command": self.command,
            "model": self.model,
            "settings": self.settings,
            "versions": self.versions,
        }
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> JobHeader:
        """Return the header in a parsed line.

        Raises:
            ValueError: the line has another format.
        """
        parts = [record.get(name) for name in ("model", "settings", "versions")]
        if record[KEY] != FORMAT or not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"its format is {record[KEY]}, and this version of layerstream reads {FORMAT}")
        model, settings, versions = parts
        return cls(command=str(record.get("command")), model=model, settings=settings, versions=versions)  # type: ignore[arg-type]

    def differences(self, now: JobHeader) -> list[str]:
        """Return each value that differs in `now`, as `name: old -> new`; empty if both mean one job.

        The name of a model may differ: the same checkpoint in another place is the same model.
        """
        if not self.command:
            return ["the old results do not say which model and settings made them"]
        found = list(_differences({"command": self.command}, {"command": now.command}))
        model = list(_differences(self.model.get("fingerprint") or {}, now.model.get("fingerprint") or {}))
        if model and self.model.get("name") != now.model.get("name"):
            found += _differences({"model": self.model.get("name")}, {"model": now.model.get("name")})
        found += [f"the model's {text}" for text in model]
        found += _differences(self.settings, now.settings)
        return found + list(_differences(self.versions, now.versions))


UNKNOWN_JOB = JobHeader(command="")
"""Marks results of a version that wrote no header."""


def describe_job(command: str, model: str, options: LoadOptions, settings: Mapping[str, Any]) -> JobHeader:
    """Return the header of the job that would run now. Reads the model's small files and headers.

    Args:
        command: `batch` or `score`.
        model: a directory or a Hub id.
        options: how the model is loaded.
        settings: the command's own settings that can change a result.

    Raises:
        CheckpointError: the model is not there, or its files are damaged.
    """
    fingerprint = backend.fingerprint_model(model, options)
    return JobHeader(
        command=command,
        model={"name": model, "revision": options.revision, "fingerprint": fingerprint},
        settings=_as_json({**settings, **_load_settings(options)}),
        versions={"layerstream": __version__, **{name: _version(name) for name in _LIBRARIES}},
    )


def _load_settings(options: LoadOptions) -> dict[str, Any]:
    named = {each.name: getattr(options, each.name) for each in fields(options)}
    settings = {name: value for name, value in named.items() if name not in _NOT_SETTINGS}
    adapters = {name: backend.fingerprint_adapter(source, options) for name, source in options.adapters}
    return {
        **settings,
        "adapter": adapters or None,
        # Nothing unless it is given: results without it can always be continued.
        "allow_sliced_head": options.allow_sliced_head or None,
        # Rows that share a padded tensor round differently from rows with a draft, which have one each.
        "draft": None if options.draft is None else str(options.draft),
        "exact_ties": None if options.exact_ties else False,
        "prefill_chunk_tokens": options.prefill_chunk_tokens,
    }


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` as they are read back, so that both can be compared."""
    read_back: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return read_back


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    # A setting that one of them does not know is as if it were not given.
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            yield f"{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}"


def _shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
