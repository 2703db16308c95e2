"""Which models a visitor may run, by names that tell nothing of this machine's folders.

It knows names, directories and who may ask for what; it deliberately loads nothing. The planner's child finds the default model.
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
"""What the default model is called; it is fetched when it is first needed."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PATH = re.compile(r"(?<![\w./:])(?:~|/[\w.@+~-]+)(?:/[\w.@+~-]+)+")


class Catalogue:
    """The models of this app."""

    def __init__(self, settings: Settings) -> None:
        """Name what may be run.

        Args:
            settings: with the models' directories or Hub ids.
        """
        self._any_model = settings.any_model
        self._sources = {_name_of(source): source for source in settings.models} or {DEFAULT_MODEL: ""}

    @property
    def names(self) -> tuple[str, ...]:
        """What visitors choose from; the first one is chosen at first."""
        return tuple(self._sources)

    def source_of(self, name: str) -> str:
        """Return the directory or Hub id behind `name`; empty for the default model, which must be fetched first.

        Raises:
            VisitorError: visitors of this page may not run it.
        """
        name = name.strip()
        if name in self._sources:
            return self._sources[name]
        if not self._any_model:
            raise VisitorError(
                f"this page runs {', '.join(self._sources)} only; start the app yourself with --any-model for others"
            )
        if not name:
            raise VisitorError(
                "name a model: a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, or a directory"
            )
        return name


def hub_id(text: str) -> str:
    """Return `text` as a Hub id.

    Raises:
        VisitorError: it is none. A path never is one.
    """
    found = text.strip().removeprefix("https://huggingface.co/").rstrip("/")
    if not _HUB_ID.fullmatch(found) or ".." in found:
        raise VisitorError(
            f"{text.strip()[:80]!r} is no Hub id; write owner/name, or paste the content of a config.json"
        )
    return found


def strip_paths(text: str) -> str:
    """Return `text` with every absolute path shortened to its last part."""
    return _PATH.sub(lambda match: match[0].rpartition("/")[2], text)


def sanitize_measurement(measurement: Measurement, source: str, name: str, *, hides: bool) -> Measurement:
    """Return a measurement that names its model and tells nothing of folders.

    Args:
        measurement: as the worker told it.
        source: the model's directory or Hub id.
        name: what visitors call it.
        hides: leave the worker's last words out.
    """
    case: Case = measurement.case.with_changes(model=name)
    return replace(
        measurement,
        case=case,
        reason=strip_paths(measurement.reason.replace(source, name)),
        stderr_tail="" if hides else strip_paths(measurement.stderr_tail.replace(source, name)),
        facts=_renamed(measurement.facts, source, name),
    )


def _renamed(value: Any, source: str, name: str) -> Any:
    if isinstance(value, str):
        return value.replace(source, name)
    if isinstance(value, dict):
        return {key: _renamed(each, source, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(each, source, name) for each in value]
    return value


def _name_of(source: str) -> str:
    return Path(source).name if Path(source).exists() else source
