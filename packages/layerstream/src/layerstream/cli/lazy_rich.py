"""The parts of rich that the commands use, imported on first use: `--version` does not need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "Console",
    "Progress",
    "SpinnerColumn",
    "Table",
    "Text",
    "TextColumn",
    "TimeElapsedColumn",
    "cell_len",
    "set_cell_size",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "rich.cells": ("cell_len", "set_cell_size"),
        "rich.console": ("Console",),
        "rich.progress": ("Progress", "SpinnerColumn", "TextColumn", "TimeElapsedColumn"),
        "rich.table": ("Table",),
        "rich.text": ("Text",),
    },
)
