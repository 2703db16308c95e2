"""Answer and score the rows of Ray datasets, on one machine or many; needs the extra `layerstream[ray]`.

Nothing outside this package imports Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .verbs import generate, score

__all__ = ["generate", "score"]

_import, __dir__ = lazy_exports(__name__, {".verbs": ("generate", "score")})


def __getattr__(name: str) -> object:
    try:
        return _import(name)
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "pyarrow"):
            raise
        raise ModuleNotFoundError(
            f"layerstream.ray needs {error.name}, which is not installed: pip install 'layerstream[ray]'",
            name=error.name,
        ) from error
