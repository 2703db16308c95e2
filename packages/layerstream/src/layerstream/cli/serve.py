"""`layerstream serve`: OpenAI's HTTP interface to one streamed model; needs the extra `serve`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BudgetTooSmallError, PlanError
from ..spec.options import LoadOptions
from ..spec.sizes import format_seconds
from . import backend
from .options import Model, model_or_default, takes_load_options
from .printing import LOADING_TOKENIZER, note, working
from .workloads import CONTEXTS, load_for_largest, workloads_for

if TYPE_CHECKING:
    from ..model import StreamedModel
    from ..server.start import Serving
    from ..spec.options import Workload
    from ..spec.plans import PlacementPlan

_NEEDED = ("fastapi", "uvicorn", "openai", "sse_starlette", "prometheus_client", "platformdirs")
"""The packages of the extra `serve`."""

_LIMITS = "Limits"

Host = Annotated[
    str, typer.Option(help="Where to listen. 0.0.0.0 opens the server to the network.", metavar="ADDRESS")
]
Port = Annotated[int, typer.Option(help="The port; 0 takes any that is free.", metavar="N", min=0, max=65535)]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="LAYERSTREAM_API_KEY",
        help="A key that clients must send. Set it in LAYERSTREAM_API_KEY so that it does not show in the "
        "list of processes.",
        metavar="KEY",
        show_default=False,
        show_envvar=True,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What clients call the model.", metavar="NAME", show_default="the Hub id, or the folder's name"
    ),
]
Origin = Annotated[
    list[str] | None,
    typer.Option(
        help="Let scripts of this web page use the server, such as https://chat.example; may be repeated.",
        metavar="URL",
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        help="Where files and batches are kept.", metavar="PATH", show_default="a folder of the user's data"
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context-tokens",
        metavar="N",
        help="The longest prompt and answer together.",
        min=2,
        show_default=f"up to {CONTEXTS[0]}, as the model and the budget allow",
        rich_help_panel=_LIMITS,
    ),
]
Together = Annotated[
    int,
    typer.Option(
        help="Reserve memory for so many requests of --context-tokens each. More run together if they are "
        "shorter; the rest wait.",
        metavar="N",
        min=1,
        rich_help_panel=_LIMITS,
    ),
]
NewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        help="The longest answer.",
        min=1,
        show_default="1,024 in chats unless the request says more, and as the context allows",
        rich_help_panel=_LIMITS,
    ),
]
Waiting = Annotated[
    int,
    typer.Option(
        "--max-waiting",
        metavar="N",
        help="How many requests may wait; more get status 429.",
        min=1,
        rich_help_panel=_LIMITS,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the address only.")]
Drain = Annotated[
    float,
    typer.Option(
        "--drain",
        metavar="SECONDS",
        help="How long open requests may take to finish after the first signal to stop.",
        min=0,
        rich_help_panel=_LIMITS,
    ),
]


@takes_load_options(several_devices=True, draft=True, prefix_cache=True)
def serve_command(
    model: Model = None,
    *,
    options: LoadOptions,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    name: Name = None,
    origin: Origin = None,
    folder: Folder = None,
    context_tokens: Context = None,
    together: Together = 4,
    max_new_tokens: NewTokens = None,
    max_waiting: Waiting = 256,
    drain: Drain = 30.0,
    quiet: Quiet = False,
) -> None:
    """Serve a model that may not fit in memory to chat programs, with OpenAI's HTTP interface.

    Requests that are open at the same time share every sweep of the weights.
    """
    _check_extra()
    model = model_or_default(model, options)
    with working(LOADING_TOKENIZER, shown=not quiet):
        _, config = backend.load_text_parts(model, options)
    limit = getattr(config, "max_position_embeddings", None)
    workloads = workloads_for(context_tokens, max_new_tokens, limit=limit, batch_size=together)
    serving = _serving(
        host=host,
        port=port,
        api_key=api_key,
        name=name,
        origins=tuple(origin or ()),
        folder=folder,
        max_new_tokens=max_new_tokens,
        max_waiting=max_waiting,
        drain_s=drain,
    )
    streamed, workload = _load(model, options, workloads, shows_status=not quiet)
    with streamed:
        if not quiet:
            note(streamed.plan.explain() + "\n")

        def announce(address: str, model_id: str) -> None:
            facts = {"has_key": bool(api_key), "warns": api_key is None and host not in _LOCAL}
            note(_announcement(streamed.plan, workload, address, model_id, **facts))

        backend.serve_model(streamed, serving, on_ready=announce)


def _check_extra() -> None:
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise PlanError(
            f"serving needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'layerstream[serve]'"
        )


def _load(
    model: str, options: LoadOptions, workloads: list[Workload], *, shows_status: bool
) -> tuple[StreamedModel, Workload]:
    """Load the model; if the budget is too small, name the options of this command that need less."""
    try:
        return load_for_largest(model, options, workloads, shows_status=shows_status)
    except BudgetTooSmallError as error:
        least = workloads[-1]
        lower = [
            f"--together (now {least.batch_size})",
            f"--context-tokens (tried down to {least.context_tokens:,})",
        ]
        lower += [f"--prefix-cache (now {options.prefix_cache})"] if options.prefix_bytes else []
        raise BudgetTooSmallError(
            f"{error}. For this server, lower {', '.join(lower[:-1])} or {lower[-1]}",
            needed_bytes=error.needed_bytes,
            budget_bytes=error.budget_bytes,
            where=error.where,
        ) from error


def _serving(
    *,
    host: str,
    port: int,
    api_key: str | None,
    name: str | None,
    origins: tuple[str, ...],
    folder: Path | None,
    max_new_tokens: int | None,
    max_waiting: int,
    drain_s: float,
) -> Serving:
    # without a key, only names of this machine: a web page could reach the server under a name of its own
    is_local = api_key is None and host in _LOCAL
    return backend.Serving(
        host=host,
        port=port,
        folder=backend.user_data_path("layerstream") / "server" if folder is None else folder,
        most_waiting=max_waiting,
        settings=backend.ServerSettings(
            model_id=name,
            api_key=api_key,
            origins=origins,
            hosts=_LOCAL if is_local else (),
            max_new_tokens=max_new_tokens,
            max_open_requests=max_waiting + _RUNNING,
        ),
        connections=backend.ServingOptions(drain_s=drain_s),
        batches=backend.BatchSettings(),
    )


_RUNNING = 64
"""Open requests that are allowed besides those that wait."""

_LOCAL = ("localhost", "127.0.0.1", "::1")


def _announcement(
    plan: PlacementPlan, workload: Workload, address: str, model_id: str, *, has_key: bool, warns: bool
) -> str:
    key = "the one you gave" if has_key else "any text"
    warning = "\n  everybody who reaches this address can use it: set a key with --api-key" if warns else ""
    return (
        f"serving at {address}/v1 (model: {model_id}, API key: {key}); Ctrl-C ends it\n"
        f"  a request takes about {format_seconds(plan.token_s)} per token, alone or with others; "
        f"prompt and answer have up to {workload.context_tokens:,} tokens{warning}"
    )
