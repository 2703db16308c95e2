"""`layerstream plan`: where every block would live, the ledger, and the cost of a sweep. Reads no weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..spec.known_models import KNOWN_MODELS
from ..spec.options import LoadOptions, Workload
from . import backend, parts
from .options import AsJson, MachineText, Model, model_or_default, takes_load_options
from .printing import print_json, show, working

if TYPE_CHECKING:
    from ..spec.plans import PlacementPlan
    from ..spec.profiles import Machine, ModelProfile

PromptTokens = Annotated[int, typer.Option(help="The longest prompt, in tokens.", metavar="N", min=1)]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", help="Tokens generated after it.", metavar="N", min=0)
]
BatchSize = Annotated[int, typer.Option(help="Sequences at once.", metavar="N", min=1)]


@takes_load_options(draft=True, prefix_cache=True)
def plan_command(
    model: Model = None,
    *,
    options: LoadOptions,
    prompt_tokens: PromptTokens = 512,
    max_new_tokens: NewTokens = 128,
    batch_size: BatchSize = 1,
    machine: MachineText = None,
    as_json: AsJson = False,
) -> None:
    """Show where every block would live, what memory it takes and what a token costs. Reads only headers."""
    workload = Workload(batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=max_new_tokens)
    options = replace(options, workload=workload)
    target = parts.machine_from_text(machine) if machine is not None else None
    model = model_or_default(model, options)
    with working("reading the model's sizes and planning"):
        if target is None and model in KNOWN_MODELS:
            target = backend.probe_machine(device=options.device)
        if target is None:
            plan = backend.plan_with(model, options)
        else:
            plan, _ = plan_on_machine(model, target, options)
    if as_json:
        print_json(plan.to_dict())
    else:
        show(plan.explain())


def plan_on_machine(model: str, machine: Machine, options: LoadOptions) -> tuple[PlacementPlan, ModelProfile]:
    """Return the plan of a model on the given machine, and the model's profile.

    Args:
        model: a checkpoint, a Hub id, or one of `KNOWN_MODELS`.
        machine: the machine.
        options: their `device` is ignored; the machine's device is used. A draft is one that needs no other
            model.
    """
    source = backend.known_config(model) if model in KNOWN_MODELS else model
    profile = backend.inspect_any(source, options, on_host=machine.device_is_host).profile
    return backend.plan_with_own_draft(profile, options, [machine]), profile
