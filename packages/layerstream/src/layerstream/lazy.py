"""Lazy exports of a package: a name is imported when it is first used (PEP 562).

A package lists its exports twice: as imports under `TYPE_CHECKING`, for editors and type checkers, and as a
table for `lazy_exports`, for the running program. `tests/test_lazy_import.py` compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package that imports its exports on first use.

    Args:
        package: the package's `__name__`.
        exports: the exported names, by the module (relative to the package, such as `.spec.plans`) that
            defines them.
    """
    module_of = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get, names
