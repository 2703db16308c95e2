"""Wall-clock: each way to generate from a cold disk, under a memory limit below the weights, in turns.

Every way is a process that stays loaded, under a memory limit of its own. All share one limit on reads, which
changes from one part of the run to the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import Outcome, median, verdict
from memory_limit import limited
from peers.process import BENCHMARKS, CALM, PeerError, PeerProcess
from read_limit import ReadLimit, read_limited

from layerstream.spec.options import LOOKUP, OwnCopy
from speculation_steps.generation import later_token_s, tokens_per_sweep
from speculation_steps.job import Job

STAGE, SETUP = "wall", "wall setup"
MEMORY_SHARE = 0.95
"""The memory limit: the libraries, and this share of the weights."""

PATIENCE_S = 3600.0
MIB = 1024**2
WARM_UP_TOKENS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to generate.

    Attributes:
        name: what it is called in tables.
        options: what `load` is given; the budget is the least with which whole blocks are streamed, unless
            it is named.
        has_assistant: whether transformers' own method drafts.
        has_drafts_memory: whether the budget is what the int8 draft's way takes.
        drafts_ahead: whether the draft goes on while a sweep waits.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    has_assistant: bool = False
    has_drafts_memory: bool = False
    drafts_ahead: bool = True


PLAIN, PLAIN_MORE = "plain", "plain, the draft's memory too"
ADAPTIVE = "int8"
WAYS = (
    Way(name=PLAIN),
    Way(name=PLAIN_MORE, has_drafts_memory=True),
    Way(name=ADAPTIVE, options={"draft": OwnCopy.INT8.value}),
    Way(name="int8, between sweeps only", options={"draft": OwnCopy.INT8.value}, drafts_ahead=False),
    Way(name="int8, one forward", options={"draft": OwnCopy.INT8.value, "exact_ties": False}),
    Way(name=OwnCopy.NF4.value, options={"draft": OwnCopy.NF4.value}),
    Way(name=LOOKUP, options={"draft": LOOKUP}),
    Way(name="transformers, int8 assistant, 16", has_assistant=True),
)
NOTES = [
    "Each way is a process of its own that stays loaded; the ways take turns for each prompt, odd rounds in "
    "reverse order. The page cache holds nothing of the checkpoint before an answer (layerstream reads past "
    "it anyway). The budget is the least, and 24 MiB so that whole blocks can be streamed: nearly all of the "
    "target is streamed in every sweep, and the draft is resident. "
    "'plain, the draft's memory too' is plain generation with the budget that the way 'int8' takes, of which "
    "it makes resident blocks.",
    "Seconds per token: after the first tokens of an answer, which come with the prompt's sweep. The ratios "
    "to plain are medians over rounds and prompts, each from one round; 'whole answer' includes the prompt's "
    "sweep. A ratio below 1 is faster. Draft seconds include the draft's reading of the prompt. Depths adapt "
    "(draft_tokens=None), but for transformers: 16, with a constant schedule and no confidence threshold.",
    "'int8, between sweeps only' does not draft while a sweep waits for weights. Draft seconds are those "
    "between sweeps.",
    "Each process first gives three tokens that are not counted.",
]


def measure(job: Job) -> None:
    """Generate in turns at every rate."""
    cases = [
        (rate, number, prompt, way)
        for rate in job.rates
        for number in range(job.rounds)
        for prompt in job.own_prompts
        for way in (WAYS if number % 2 == 0 else reversed(WAYS))
    ]

    def key(rate: int, number: int, way: Way) -> dict[str, Any]:
        return {"rate": rate, "round": number, "way": way.name}

    if not any(job.lacks(STAGE, [prompt], **key(rate, number, way)) for rate, number, prompt, way in cases):
        return
    with _children(job) as (children, reads):
        for rate, number, prompt, way in cases:
            if way.name in children:
                reads.set(rate)
                child = children[way.name]
                ask = {"prompt": prompt.ids, "new_tokens": job.new_tokens}
                job.remember(
                    STAGE,
                    lambda child=child, ask=ask: child.ask("generate", seconds=PATIENCE_S, **ask),
                    prompt=prompt.name,
                    **key(rate, number, way),
                )


@contextmanager
def _children(job: Job) -> Iterator[tuple[dict[str, PeerProcess], ReadLimit]]:
    """Yield a loaded process for each way that can be loaded, by name, and the limit on their reads."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reads = stack.enter_context(read_limited(job.model))
        base = _baseline(job, folder)
        limit_bytes = base["baseline_bytes"] + int(MEMORY_SHARE * base["weight_bytes"])
        children = {}
        for number, way in enumerate(way for way in WAYS if job.wants(way.name)):
            budget = base["ledger_bytes"] if way.has_drafts_memory else "min"
            spec = _spec(job, way, budget)
            # tiny weights beside the libraries: such a limit would mean nothing
            under_bytes = None if job.is_quick else limit_bytes
            child = stack.enter_context(_running(spec, under_bytes, reads, folder / f"{number}.log", number))
            try:
                facts = child.ask("load", seconds=PATIENCE_S)
                warm_up = {"prompt": job.prompts[0].ids, "new_tokens": WARM_UP_TOKENS}
                child.ask("generate", seconds=PATIENCE_S, **warm_up)
                children[way.name] = child
            except PeerError as error:
                facts = {"error": str(error)}
            limits = {
                "limit_bytes": under_bytes,
                "limit_kind": child.limit.kind,
                "has_reads": bool(reads.group),
            }
            job.findings.put(SETUP, base | facts | limits, way=way.name, new_tokens=job.new_tokens)
        yield children, reads


def _baseline(job: Job, folder: Path) -> dict[str, Any]:
    """Return what the libraries take, and what the way with the int8 draft is planned to take."""
    spec = _spec(job, next(way for way in WAYS if way.name == ADAPTIVE), "min")
    with _running(spec, None, ReadLimit(), folder / "baseline.log", len(WAYS)) as child:
        return child.ask("baseline", seconds=PATIENCE_S)


def _spec(job: Job, way: Way, budget: int | str) -> dict[str, Any]:
    return {
        "model": str(job.model),
        "options": {**way.options, "budget": budget},
        "has_assistant": way.has_assistant,
        "drafts_ahead": way.drafts_ahead,
        "prompt_tokens": job.workload.prompt_tokens,
        "new_tokens": job.new_tokens,
    }


@contextmanager
def _running(
    spec: dict[str, Any], limit_bytes: int | None, reads: ReadLimit, log: Path, number: int
) -> Iterator[PeerProcess]:
    with limited(limit_bytes, label=f"-{number}") as limit, log.open("ab") as errors:
        given = json.dumps({"memory": asdict(limit), "reads": asdict(reads), "spec": spec})
        paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-m", "speculation_steps.wall_child", given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=BENCHMARKS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **CALM},
        )
        try:
            yield PeerProcess(process=process, limit=limit, log=log)
        finally:
            process.kill()
            process.wait()


def report(job: Job) -> Outcome:
    """Return the table."""
    outcome = Outcome(
        theme="speculation-wall",
        title=f"From a cold disk under a memory limit: {len(job.prompts)} prompts, "
        f"up to {job.new_tokens} new tokens",
        columns=(
            "read limit",
            "way",
            "s per token",
            "of plain",
            "of plain, draft's memory too",
            "whole answer, of plain",
            "tokens per sweep",
            "draft s per token",
            "same",
            "MB read per token",
        ),
        notes=[*NOTES, *_setup_notes(job)],
    )
    for rate in job.rates:
        for way in WAYS:
            found = _answers(job, rate, way.name)
            if found:
                _add(job, outcome, rate, way.name)
                outcome.notes.append(_by_kind(job, rate, way.name))
    return outcome


def _answers(job: Job, rate: int, way: str) -> dict[tuple[int, str], dict[str, Any]]:
    entries = job.found(STAGE, rate=rate, way=way)
    return {(key["round"], key["prompt"]): found for key, found in entries if key["round"] < job.rounds}


def _add(job: Job, outcome: Outcome, rate: int, way: str) -> None:
    found, plain, more = (_answers(job, rate, name) for name in (way, PLAIN, PLAIN_MORE))
    each = list(found.values())
    tokens = sum(len(one["ids"]) for one in each)
    shared = [case for case in found if case in plain]
    figures = {
        "rate_bytes_per_s": rate,
        "way": way,
        "answers": len(each),
        "token_s": median([later_token_s(one) for one in each]),
        "of_plain": _ratio(found, plain),
        "of_plain_more": _ratio(found, more),
        "whole_of_plain": median([found[case]["seconds"] / plain[case]["seconds"] for case in shared])
        if shared
        else None,
        "tokens_per_sweep": tokens_per_sweep(each),
        "draft_s_per_token": sum(one["draft_s"] for one in each) / tokens,
        "same": sum(found[case]["ids"] == plain[case]["ids"] for case in shared),
        "read_bytes_per_token": sum(one["bytes_read"] for one in each) / tokens,
    }
    outcome.figures.setdefault("rows", []).append(figures)
    ratios = (figures["of_plain"], figures["of_plain_more"], figures["whole_of_plain"])
    outcome.rows.append(
        (
            _shown(rate),
            way,
            f"{figures['token_s']:.3f}",
            *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
            f"{figures['tokens_per_sweep']:.2f}",
            f"{figures['draft_s_per_token']:.3f}",
            f"{figures['same']} of {len(shared)}",
            f"{figures['read_bytes_per_token'] / 1e6:.1f}",
        )
    )
    if way == ADAPTIVE and figures["of_plain"]:
        what = f"int8, read limit {outcome.rows[-1][0]}: times as fast as plain"
        outcome.verdicts.append(verdict(what, 1 / figures["of_plain"], 3.0, at_most=False))


def _by_kind(job: Job, rate: int, way: str) -> str:
    """Return a line with the tokens per sweep for each kind of prompt."""
    found = {kind: [each for _, each in job.found(STAGE, kind, rate=rate, way=way)] for kind in job.kinds()}
    shown = [f"{kind} {tokens_per_sweep(each):.2f}" for kind, each in found.items() if each]
    return f"{way} (read limit: {_shown(rate)}), tokens per sweep by kind of prompt: {', '.join(shown)}."


def _shown(rate: int) -> str:
    return f"{rate / 1e6:.0f} MB/s" if rate else "none"


def _ratio(
    found: dict[tuple[int, str], dict[str, Any]], others: dict[tuple[int, str], dict[str, Any]]
) -> float | None:
    """Return the median ratio of seconds per token, each of one prompt in one round."""
    ratios = [
        later_token_s(found[case]) / later_token_s(others[case])
        for case in found
        if case in others and later_token_s(others[case])
    ]
    return median(ratios) if ratios else None


def _setup_notes(job: Job) -> list[str]:
    setups = job.findings.of(SETUP, new_tokens=job.new_tokens)
    notes = []
    for key, facts in setups:
        if "error" in facts:
            notes.append(f"{key['way']}: could not be loaded: {facts['error']}.")
        else:
            plan_bytes, sweep_bytes = facts["ledger_bytes"], facts["sweep_bytes"]
            notes.append(
                f"{key['way']}: planned {plan_bytes / MIB:.0f} MiB; "
                f"a sweep reads {sweep_bytes / MIB:.0f} MiB."
            )
    if setups:
        facts = setups[-1][1]
        limit_bytes, baseline_bytes = facts["limit_bytes"], facts["baseline_bytes"]
        memory = (
            "no memory limit"
            if limit_bytes is None
            else f"a memory limit ({facts['limit_kind']}) of {(limit_bytes - baseline_bytes) / MIB:.0f} MiB "
            f"above the {baseline_bytes / MIB:.0f} MiB that interpreter and libraries take"
        )
        reads = "limited by a control group" if facts["has_reads"] else "not limited: no control group for it"
        notes.append(
            f"Every process ran under {memory}; the weights take {facts['weight_bytes'] / MIB:.0f} MiB. "
            f"Reads were {reads}."
        )
    return notes
