"""`layerstream plan`: where every block would live, the ledger, and the cost of a sweep. Reads no weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PlanError
from ..spec.known_models import KNOWN_MODELS
from ..spec.options import LoadOptions, Workload
from . import backend, parts
from .cluster import ClusterQuestion, machines_from_text, plan_rows
from .options import AsJson, MachineText, Model, model_or_default, takes_load_options
from .printing import print_json, show, working

if TYPE_CHECKING:
    from ..spec.plans import PlacementPlan
    from ..spec.profiles import Machine, ModelProfile

PromptTokens = Annotated[int, typer.Option(help="The longest prompt, in tokens.", metavar="N", min=1)]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", help="Tokens generated after it.", metavar="N", min=0)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Sequences at once; with --rows, as many as are fastest.",
        metavar="N",
        min=1,
        show_default="1",
    ),
]
_CLUSTER = "A job of many rows"
_MACHINES = "1,2,4,8"

Rows = Annotated[
    int | None,
    typer.Option(
        help="Also show what a job of this many rows takes on several such machines; without --machine, this "
        "one is measured.",
        metavar="N",
        min=1,
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
Machines = Annotated[
    str | None,
    typer.Option(
        help="The numbers of machines to show.",
        metavar="N,N,...",
        show_default=_MACHINES,
        rich_help_panel=_CLUSTER,
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        help="The price of a machine-hour.",
        metavar="NUMBER",
        min=0.0,
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
LoadSeconds = Annotated[
    float | None,
    typer.Option(
        "--load-s",
        help="Seconds until a machine computes: its start, the copy of the weights, loading.",
        metavar="SECONDS",
        min=0.0,
        show_default="what its disk needs for the weights",
        rich_help_panel=_CLUSTER,
    ),
]


@takes_load_options(draft=True, prefix_cache=True)
def plan_command(
    model: Model = None,
    *,
    options: LoadOptions,
    prompt_tokens: PromptTokens = 512,
    max_new_tokens: NewTokens = 128,
    batch_size: BatchSize = None,
    machine: MachineText = None,
    rows: Rows = None,
    machines: Machines = None,
    price: Price = None,
    load_s: LoadSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Show where every block would live, what memory it takes and what a token costs. Reads only headers."""
    if rows is None and (machines, price, load_s) != (None, None, None):
        raise PlanError("--machines, --price and --load-s are for --rows: give --rows N")
    workload = Workload(batch_size=batch_size or 1, prompt_tokens=prompt_tokens, new_tokens=max_new_tokens)
    options = replace(options, workload=workload)
    target = parts.machine_from_text(machine) if machine is not None else None
    model = model_or_default(model, options)
    question = None
    if rows is not None:
        numbers = machines_from_text(_MACHINES if machines is None else machines)
        question = ClusterQuestion(rows, numbers, price or 0.0, load_s, workload, batch_size is not None)
    with working("reading the model's sizes and planning"):
        if target is None and (model in KNOWN_MODELS or question is not None):
            target = backend.probe_machine(device=options.device)
        forecast = None
        if target is None:
            plan = backend.plan_with(model, options)
        elif question is None:
            plan, _ = plan_on_machine(model, target, options)
        else:
            plan, forecast = plan_rows(profile_on_machine(model, target, options), options, target, question)
    if as_json:
        print_json(plan.to_dict() | ({"cluster": forecast.to_dict()} if forecast is not None else {}))
    else:
        show(plan.explain() + (f"\n{forecast.explain()}" if forecast is not None else ""))


def plan_on_machine(model: str, machine: Machine, options: LoadOptions) -> tuple[PlacementPlan, ModelProfile]:
    """Return the plan of a model on the given machine, and the model's profile.

    Args:
        model: a checkpoint, a Hub id, or one of `KNOWN_MODELS`.
        machine: the machine.
        options: their `device` is ignored; the machine's device is used. A draft is one that needs no other
            model.
    """
    profile = profile_on_machine(model, machine, options)
    return backend.plan_with_own_draft(profile, options, [machine]), profile


def profile_on_machine(model: str, machine: Machine, options: LoadOptions) -> ModelProfile:
    """Return the sizes of a checkpoint, a Hub id or one of `KNOWN_MODELS`, laid out for a machine."""
    source = backend.known_config(model) if model in KNOWN_MODELS else model
    return backend.inspect_any(source, options, on_host=machine.device_is_host).profile
