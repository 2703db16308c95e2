"""`layerstream run`: a prompt in, the answer streamed out, the plan before and the report after.

Room: surfaces. The answer is all that goes to stdout, so that it can be piped; everything else goes to stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import Workload, load
from ..engine.tokenizer import load_tokenizer
from ..errors import PlanError
from .options import (
    AsJson,
    Attention,
    Budget,
    Device,
    Dtype,
    Model,
    Revision,
    TrustRemoteCode,
    model_or_default,
)
from .printing import err_console, note, print_json
from .session import Sampling, answer, encode_prompt
from .trace_files import check_trace_path, write_trace

Prompt = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="The prompt; read from stdin when piped.", show_default=False),
]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens at most.", min=1)]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompt into the checkpoint's chat template.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature; without it the likeliest token is taken.",
        min=0.01,
        show_default=False,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", min=0, show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer: no plan, progress or report.")]
TraceFile = Annotated[
    Path | None,
    typer.Option(help="Write the timeline to this .json, .html or .svg file.", show_default=False),
]


def run_command(
    model: Model = None,
    prompt: Prompt = None,
    max_new_tokens: NewTokens = 128,
    budget: Budget = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat: Chat = False,
    temperature: Temperature = None,
    seed: Seed = None,
    attn_implementation: Attention = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    trace: TraceFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Answer a prompt with a model that need not fit in memory. The text goes to stdout as it comes."""
    if trace is not None:
        check_trace_path(trace)
    text = _prompt_text(prompt)
    model = model_or_default(model)
    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    inputs = encode_prompt(tokenizer, text, chat=chat)
    workload = Workload(prompt_tokens=int(inputs["input_ids"].shape[1]), new_tokens=max_new_tokens)
    with err_console().status("planning and loading"):
        streamed = load(
            model,
            budget=budget,
            device=device,
            dtype=dtype,
            workload=workload,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    chatty = not quiet and not as_json
    with streamed:
        if chatty:
            note(streamed.plan.explain() + "\n")
        sampling = Sampling(temperature=temperature, seed=seed, max_new_tokens=max_new_tokens)
        result = answer(
            streamed, tokenizer, inputs, sampling=sampling, shows_text=not as_json, shows_progress=not quiet
        )
        report = streamed.report()
        if chatty:
            note(f"\n{result.explain()}\n{report.explain()}")
        if as_json:
            print_json({"prompt": text, "answer": result, "plan": streamed.plan, "report": report.as_dict()})
        if trace is not None:
            write_trace(streamed.timeline.spans(), trace, model=model, subtitle=result.explain())


def _prompt_text(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise PlanError("no prompt was given: use --prompt TEXT, or pipe it in")
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise PlanError("the prompt is empty: give one with --prompt, or pipe it in")
    return text
