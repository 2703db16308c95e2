"""Turn frozen dataclasses into JSON-ready dicts and back, driven by their type hints.

Understood: dataclasses, enums (by value), `tuple[X, ...]`, `Mapping[str, X]`, `X | None` and JSON's own
scalars.

A class may name properties in `DERIVED_KEYS`: they are written for readers of the JSON, and ignored when it
is read back.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import PlanError

VERSION = 1
"""Version of the dicts; raised whenever a field is added, removed or changes its meaning."""

_T = TypeVar("_T")
_SCALARS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


class JsonValue:
    """A frozen dataclass that travels between processes as JSON."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return this value as a JSON-ready dict with a `version`, and with its derived keys."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the value that `to_dict` wrote.

        Raises:
            PlanError: the version or a field is not what this version writes; the message names its path.
        """
        return from_dict(cls, data)


def to_dict(value: Any) -> dict[str, Any]:
    """Return a dataclass as a JSON-ready dict with the `version` of the format."""
    return {"version": VERSION, **to_json(value)}


def to_json(value: Any) -> Any:
    """Return `value` with dataclasses and mappings as dicts, enums as their values and tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return {name: to_json(getattr(value, name)) for name in (*names, *_derived_keys(type(value)))}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_dict(kind: type[_T], data: object) -> _T:
    """Return the `kind` that `to_dict` turned into `data`.

    Raises:
        PlanError: the version is unknown, or a field is missing, unknown or of the wrong type; the message
            names its path.
    """
    where = kind.__name__
    if not isinstance(data, Mapping):
        raise _wrong_type(where, "an object", data)
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        found = f"version {reprlib.repr(version)}" if "version" in data else "no version"
        raise PlanError(
            f"{where}.version must be {VERSION}; found {found}: "
            "read it with the layerstream that wrote it, or make it again"
        )
    value: _T = _read_dataclass(kind, {key: item for key, item in data.items() if key != "version"}, where)
    return value


def _read(hint: Any, value: object, path: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
        return None if value is None else _read(hint, value, path)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, "a list", value)
        item_hint, _ = get_args(hint)
        return tuple(_read(item_hint, item, f"{path}[{index}]") for index, item in enumerate(value))
    if is_dataclass(hint):
        return _read_dataclass(hint, value, path)
    if get_origin(hint) is Mapping:
        _, item_hint = get_args(hint)
        return {key: _read(item_hint, item, f"{path}.{key}") for key, item in _object(value, path).items()}
    if issubclass(hint, Enum):
        return _read_enum(hint, value, path)
    # bool is an int to Python, but not to JSON
    if not isinstance(value, _SCALARS[hint]) or (isinstance(value, bool) and hint is not bool):
        raise _wrong_type(path, _NAMES[hint], value)
    return value


def _read_dataclass(kind: Any, value: object, path: str) -> Any:
    data, hints = _object(value, path), _field_hints(kind)
    for name in hints:
        if name not in data:
            raise PlanError(f"{path}.{name} is missing: add it, or write the value again with to_dict()")
    for name in data:
        if name not in hints and name not in _derived_keys(kind):
            raise PlanError(
                f"{path}.{name} is not a field: remove it, or correct it to one of {', '.join(hints)}"
            )
    return kind(**{name: _read(hint, data[name], f"{path}.{name}") for name, hint in hints.items()})


def _read_enum(kind: type[Enum], value: object, path: str) -> Enum:
    for member in kind:
        if member.value == value:
            return member
    raise _wrong_type(path, f"one of {', '.join(repr(member.value) for member in kind)}", value)


def _object(value: object, path: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong_type(path, "an object", value)
    return value


@cache
def _field_hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _derived_keys(kind: type) -> Iterable[str]:
    keys: Iterable[str] = getattr(kind, "DERIVED_KEYS", ())
    return keys


def _wrong_type(path: str, expected: str, found: object) -> PlanError:
    return PlanError(
        f"{path} must be {expected}; found {reprlib.repr(found)} ({type(found).__name__}): "
        "correct it, or write the value again with to_dict()"
    )
