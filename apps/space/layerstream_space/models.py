"""Which models a visitor may run, under names that reveal nothing about this machine's folders.

It loads no model. The planner's child finds the default model.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerstream_compare import Case, Measurement

from .errors import VisitorError
from .settings import Settings

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
"""Name of the default model, which is fetched when it is first needed."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PATH = re.compile(r"(?<![\w./:])(?:~|/[\w.@+~-]+)(?:/[\w.@+~-]+)+")


class Catalogue:
    """The models that this app may run, by name."""

    def __init__(self, settings: Settings) -> None:
        """Create the catalogue.

        Args:
            settings: has the models' directories or Hub ids.
        """
        self._any_model = settings.any_model
        self._sources = {_name_of(source): source for source in settings.models} or {DEFAULT_MODEL: ""}

    @property
    def names(self) -> tuple[str, ...]:
        """The names that visitors choose from; the first is the default."""
        return tuple(self._sources)

    def source_of(self, name: str) -> str:
        """Return the directory or Hub id of `name`; empty for the default model, which must be fetched first.

        Raises:
            VisitorError: this page may not run it.
        """
        name = name.strip()
        if name in self._sources:
            return self._sources[name]
        if not self._any_model:
            raise VisitorError(
                f"This page runs only {', '.join(self._sources)}. To run others, start the app yourself "
                "with --any-model."
            )
        if not name:
            raise VisitorError(
                "Name a model: a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, or a directory."
            )
        return name


def hub_id(text: str) -> str:
    """Return `text` as a Hub id.

    Raises:
        VisitorError: it is not a Hub id; a path never is.
    """
    found = text.strip().removeprefix("https://huggingface.co/").rstrip("/")
    if not _HUB_ID.fullmatch(found) or ".." in found:
        raise VisitorError(
            f"{text.strip()[:80]!r} is not a Hub id. Write owner/name, or paste the content of a config.json."
        )
    return found


def strip_paths(text: str) -> str:
    """Return `text` with every absolute path shortened to its last part."""
    return _PATH.sub(lambda match: match[0].rpartition("/")[2], text)


def sanitize_measurement(
    measurement: Measurement, source: str, name: str, *, hide_stderr: bool
) -> Measurement:
    """Return the measurement with the model's name for visitors and without any folder.

    Args:
        measurement: the worker's measurement.
        source: the model's directory or Hub id.
        name: the model's name for visitors.
        hide_stderr: also leave out the worker's last output on standard error.
    """
    case: Case = measurement.case.with_changes(model=name)
    return replace(
        measurement,
        case=case,
        reason=strip_paths(measurement.reason.replace(source, name)),
        stderr_tail="" if hide_stderr else strip_paths(measurement.stderr_tail.replace(source, name)),
        facts=_renamed(measurement.facts, source, name),
    )


def _renamed(value: Any, source: str, name: str) -> Any:
    if isinstance(value, str):
        return value.replace(source, name)
    if isinstance(value, dict):
        return {key: _renamed(item, source, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, source, name) for item in value]
    return value


def _name_of(source: str) -> str:
    return Path(source).name if Path(source).exists() else source
