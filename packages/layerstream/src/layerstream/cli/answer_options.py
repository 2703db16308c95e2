"""Options of `run`, `chat` and `batch` about how to answer, and how they become settings."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import PlanError

Chat = Annotated[bool, typer.Option("--chat", help="Put the prompt into the checkpoint's chat template.")]
System = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="With --chat: a system message above the prompt.", show_default=False),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature. Without it and --top-p, the likeliest token is taken.",
        min=0.01,
        metavar="X",
        show_default=False,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Sample from the likeliest tokens that together have this probability.",
        min=0.01,
        max=1.0,
        metavar="X",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Make sampling (--temperature, --top-p) repeatable.", metavar="N", min=0, show_default=False
    ),
]


def refuse_unused_system(system: str | None, *, chat: bool) -> None:
    """Refuse a system message without a chat template to put it into.

    Raises:
        PlanError: there is one, and prompts are not put into a template.
    """
    if system is not None and not chat:
        raise PlanError("--system needs --chat: the checkpoint's chat template puts it above the prompt")


def stop_texts(given: list[str] | None) -> tuple[str, ...]:
    """Return the texts of `--stop`.

    Raises:
        PlanError: one is empty.
    """
    if given and not all(given):
        raise PlanError("--stop is empty: give the text that ends the answer")
    return tuple(given or ())
