"""`layerstream run`: answer a prompt and stream the text, with the plan before and the report after.

Only the answer goes to stdout, so that it can be piped. Everything else goes to stderr.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PlanError
from ..spec.options import LoadOptions, Workload
from ..uses.batching.requests import GenerationRequest
from . import backend
from .options import AsJson, Model, model_or_default, takes_load_options
from .printing import err_console, loading_status, note, print_json
from .trace_files import check_trace_path, write_trace

if TYPE_CHECKING:
    from ..model import StreamedModel
    from ..spec.verification import VerificationReport

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="The prompt; by default, what is piped in.", show_default=False
    ),
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", metavar="N", help="The maximum number of new tokens.", min=1)
]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompt into the checkpoint's chat template.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature; without one, take the likeliest token.",
        min=0.01,
        metavar="X",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Make sampling repeatable.", metavar="N", min=0, show_default=False)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the answer: no plan, progress or report.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="First compare some streamed units with resident copies, bit for bit; end with status 2 if one "
        "differs.",
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the timeline to this .json, .html or .svg file.", show_default=False
    ),
]


@takes_load_options()
def run_command(
    model: Model = None,
    prompt: Prompt = None,
    max_new_tokens: NewTokens = 128,
    *,
    options: LoadOptions,
    chat: Chat = False,
    temperature: Temperature = None,
    seed: Seed = None,
    verify: Verify = False,
    trace: TraceFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Answer a prompt with a model that may not fit in memory. The text is streamed to stdout."""
    if trace is not None:
        check_trace_path(trace)
    text = _prompt_text(prompt)
    model = model_or_default(model)
    tokenizer = backend.load_tokenizer(model, options)
    request = GenerationRequest(
        prompt=backend.encode_prompt(tokenizer, text, chat=chat),
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        temperature=temperature,
        seed=seed,
    )
    workload = Workload(prompt_tokens=len(request.prompt), new_tokens=max_new_tokens)
    with loading_status() as on_progress:
        streamed = backend.load_with(model, replace(options, workload=workload), on_progress=on_progress)
    shows_notes = not quiet and not as_json
    with streamed:
        if shows_notes:
            note(streamed.plan.explain() + "\n")
        verification = _verify(streamed, shows_notes=shows_notes) if verify else None
        answer = backend.generate_answer(
            streamed, tokenizer, request, shows_text=not as_json, shows_progress=not quiet
        )
        report = streamed.report()
        if shows_notes:
            note(f"\n{answer.explain()}\n{report.explain()}")
        if as_json:
            print_json(
                {
                    "prompt": text,
                    "answer": asdict(answer),
                    "plan": streamed.plan.to_dict(),
                    "report": report.to_dict(),
                    **({} if verification is None else {"verification": verification.to_dict()}),
                }
            )
        if trace is not None:
            write_trace(streamed.timeline.spans(), trace, model=model, subtitle=answer.explain())


def _verify(streamed: StreamedModel, *, shows_notes: bool) -> VerificationReport:
    """Return what `streamed.verify` found; the run's report starts afterwards.

    Raises:
        VerificationError: it found a difference.
    """
    with err_console().status("verifying"):
        verification = streamed.verify()
    if shows_notes:
        note(verification.explain() + "\n")
    backend.refuse_difference(verification)
    streamed.reset_report()
    return verification


def _prompt_text(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise PlanError("there is no prompt: use --prompt TEXT, or pipe it in")
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise PlanError("the prompt is empty: give one with --prompt, or pipe it in")
    return text
