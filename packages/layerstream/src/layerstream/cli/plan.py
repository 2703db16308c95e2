"""`layerstream plan`: where every block would live, the ledger, and what one sweep takes. No weight is read.

Room: surfaces.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import Machine, PlacementPlan, Workload, plan, probe_machine, simulate
from ..architecture.known_models import KNOWN_MODELS, known_config
from .options import (
    AsJson,
    Attention,
    Budget,
    Device,
    Dtype,
    MachineText,
    Model,
    Revision,
    TrustRemoteCode,
    machine_from_text,
    model_or_default,
)
from .printing import out_console, print_json

PromptTokens = Annotated[int, typer.Option(help="The longest prompt, in tokens.", min=1)]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Tokens generated after it.", min=0)]
BatchSize = Annotated[int, typer.Option(help="Sequences at once.", min=1)]


def plan_command(
    model: Model = None,
    budget: Budget = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    prompt_tokens: PromptTokens = 512,
    max_new_tokens: NewTokens = 128,
    batch_size: BatchSize = 1,
    machine: MachineText = None,
    attn_implementation: Attention = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show where every block would live, what memory it takes and what a token would cost. Reads headers only."""
    workload = Workload(batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=max_new_tokens)
    wished = machine_from_text(machine) if machine is not None else None
    if wished is not None or model in KNOWN_MODELS:
        there = wished or probe_machine(device=device)
        made = plan_on_machine(model_or_default(model), there, workload, budget=budget, dtype=dtype)
    else:
        made = plan(
            model_or_default(model),
            budget=budget,
            device=device,
            dtype=dtype,
            workload=workload,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    if as_json:
        print_json(made)
    else:
        out_console().print(made.explain(), markup=False)


def plan_on_machine(
    model: str, machine: Machine, workload: Workload, *, budget: str, dtype: str
) -> PlacementPlan:
    """Return the plan of `model` (a checkpoint, Hub id or known model's name) on a machine that need not be this one."""
    subject = known_config(model) if model in KNOWN_MODELS else model
    return simulate(subject, machine=machine, workload=workload, budget=budget, dtype=dtype)
