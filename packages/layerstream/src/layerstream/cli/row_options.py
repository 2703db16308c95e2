"""Options of `batch` and `score` about where rows are and which columns make them."""

from __future__ import annotations

from typing import Annotated

import typer

_ROWS = "Rows from a data set"

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="The configuration of a data set, which its page calls a subset.",
        metavar="NAME",
        show_default="its only one, or its default",
        rich_help_panel=_ROWS,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="The split of a data set, a part of one such as test[:100], or all.",
        metavar="NAME",
        show_default="its only one",
        rich_help_panel=_ROWS,
    ),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(
        help="The column with the prompts: text, token ids or messages. Of a row, only this and id are then "
        "read, in files too.",
        metavar="NAME",
        show_default="prompt",
        rich_help_panel=_ROWS,
    ),
]
PrefixColumn = Annotated[
    str | None,
    typer.Option(
        help="The column with the prefixes. Of a row, only this, the suffixes and id are then read, in files "
        "too.",
        metavar="NAME",
        show_default="prefix",
        rich_help_panel=_ROWS,
    ),
]
SuffixesColumn = Annotated[
    str | None,
    typer.Option(
        help="The column with the suffixes.",
        metavar="NAME",
        show_default="suffixes",
        rich_help_panel=_ROWS,
    ),
]
